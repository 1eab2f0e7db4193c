"""An engine without a model, for latency studies and fault injection."""
