"""The production coordinator: event log, reconciler, Flower shells, device API and registry."""
