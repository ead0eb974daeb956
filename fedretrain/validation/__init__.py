"""Whether a candidate may leave the house: checks on additive statistics. Pure."""
