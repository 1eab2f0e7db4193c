"""Connections of clients: accepted, timed, and interrupted."""
