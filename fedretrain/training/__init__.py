"""What a device computes; the only package that imports torch."""
