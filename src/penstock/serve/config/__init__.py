"""Serving configurations: reading them, and planning resources by them."""
