"""Parses text that users give, with error messages of our own."""
