"""A fleet's event log: what a coordinator can see of its devices, one event per line."""
