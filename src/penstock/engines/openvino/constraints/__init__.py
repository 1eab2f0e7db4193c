"""Constraints: written as grammars, tried within limits, and compiled beside the engine."""
