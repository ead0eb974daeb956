"""Watching a fleet: histograms, divergences, predictions, labels, detectors, and one view of them. Pure."""
