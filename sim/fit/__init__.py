"""From a fleet's event log to a fleet that can be simulated, with the fit's uncertainties and its fidelity."""
