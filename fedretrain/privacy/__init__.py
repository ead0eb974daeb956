"""Clip, noise, ledger and accountants."""
