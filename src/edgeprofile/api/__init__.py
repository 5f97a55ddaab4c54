"""The HTTP surfaces, one a module."""
