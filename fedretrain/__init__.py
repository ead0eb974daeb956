"""Federated learning for fleets of sensor devices."""
