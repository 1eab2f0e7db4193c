"""Choosing between several servers or replicas, and leaving them alone when they ask for it."""
