"""Connections of clients: accepted, timed, interrupted."""
