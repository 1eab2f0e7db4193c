"""Answers of deterministic requests that jobs share: in a directory, or at a URL."""
