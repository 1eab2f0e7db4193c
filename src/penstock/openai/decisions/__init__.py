"""Decisions on the wire: OpenAI's form, and that of the System One API."""
