"""Grammars in the engine's notation, made of JSON Schemas and regular expressions."""
