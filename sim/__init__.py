"""The simulator: a fleet in virtual time."""
