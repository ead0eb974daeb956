"""When to retrain and how: triggers, strategies, budget. Pure."""
