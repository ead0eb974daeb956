"""Personalization methods, one paper per file; `make.make_task` builds one from its configuration."""
