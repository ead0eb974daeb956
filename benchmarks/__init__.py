"""One file per question; each prints one JSON line per measurement."""
