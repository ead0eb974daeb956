"""Candidates that are bad in different ways, and good ones, sent through the loop that should tell them apart."""
