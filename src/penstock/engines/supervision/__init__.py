"""Keeping engines alive: starts, restarts, and requests that kill them."""
