"""Releasing a candidate step by step, and taking it back. Pure."""
