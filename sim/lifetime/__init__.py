"""A fleet's whole life in virtual time: it serves, ages, is watched, retrained and released to."""
