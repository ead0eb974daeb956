"""From raw samples to model inputs; declarative, numpy."""
