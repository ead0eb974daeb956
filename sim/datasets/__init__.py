"""Real and synthetic sensor data, each as the same raw form."""
