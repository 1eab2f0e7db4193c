"""Constraints, compiled beside the engine and within limits."""
