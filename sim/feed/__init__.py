"""The world around real agents: a synthetic fleet's sensors, played in real time at the agents' local APIs."""
