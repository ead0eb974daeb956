"""Ids, parameter trees, randomness, clock and errors; numpy only."""
