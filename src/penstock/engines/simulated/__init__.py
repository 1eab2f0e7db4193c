"""An engine without a model, for latency studies and fault injection."""

from penstock.engines.simulated.engine import SimulatedEngine

__all__ = ["SimulatedEngine"]
