"""The HTTP API: routes, limits, errors and streams."""
