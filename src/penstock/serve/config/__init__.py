"""Serving configurations, and what is built and placed by them."""
