"""Reads thoughts and tool calls out of generated text while it streams, a file a form."""
