"""Ids, parameter trees, randomness, units of time and errors; numpy only."""
