"""Translates requests and answers between our types and vLLM's."""
