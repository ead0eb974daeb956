"""The workflow of a round: sampling, reduction, release."""
