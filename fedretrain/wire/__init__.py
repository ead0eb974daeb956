"""Codecs between the domain's types and what crosses the network."""
