"""The HTTP API: routes, limits, errors and event streams."""
