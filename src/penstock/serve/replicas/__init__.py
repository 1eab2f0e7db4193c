"""Models whose replicas run elsewhere."""
