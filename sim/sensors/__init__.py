"""Sensor drift and faults on the raw signal, with the ground truth of what was injected."""
