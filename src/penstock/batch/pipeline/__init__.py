"""Processors: their configurations, their stages' workers, and their rows."""
