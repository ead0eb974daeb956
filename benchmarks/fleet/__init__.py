"""A large fleet against a real coordinator: ``python -m benchmarks.fleet``."""
