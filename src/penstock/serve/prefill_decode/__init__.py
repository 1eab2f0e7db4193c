"""Prefill and decode on engines of their own."""
