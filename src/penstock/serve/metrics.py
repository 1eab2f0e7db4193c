"""Prometheus metrics of the ingress. Nothing is counted per token: a request reports when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from penstock.serve.handle import ModelHandle, StateName

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one ingress, in a registry of their own. The names are those that vLLM's have after its prefix."""

    def __init__(self, handles: Mapping[str, ModelHandle]) -> None:
        self.registry = registry = CollectorRegistry()
        by_model = ("model_name",)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"penstock_{name}", text, by_model, buckets=buckets, registry=registry)

        self.requests = Counter(
            "penstock_requests_total",
            "Requests answered, by HTTP status; 499 is a client that left.",
            ("model_name", "endpoint", "status"),
            registry=registry,
        )
        self.prompt_tokens = Counter("penstock_prompt_tokens_total", "Tokens of prompts.", by_model, registry=registry)
        self.cached_tokens = Counter(
            "penstock_cached_prompt_tokens_total", "Tokens of prompts found in a cache.", by_model, registry=registry
        )
        self.generation_tokens = Counter(
            "penstock_generation_tokens_total", "Tokens generated.", by_model, registry=registry
        )
        self.latency = histogram("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self.first_token = histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.per_token = histogram(
            "time_per_output_token_seconds", "Mean time between the tokens of a streamed request.", _SHORT
        )
        self.queue_time = histogram("request_queue_time_seconds", "Waiting to be admitted to the engine.", _SHORT)
        self.engine_time = histogram("request_engine_time_seconds", "Waiting for the engine, its queue included.")
        self.framework_time = histogram(
            "request_framework_time_seconds", "What a request took beside waiting for the engine.", _SHORT
        )
        registry.register(_States(handles))

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class _States(Collector):
    """What the models are doing at the moment they are asked."""

    def __init__(self, handles: Mapping[str, ModelHandle]) -> None:
        self._handles = handles

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("penstock_num_requests_running", "Requests being answered.", labels=["model_name"])
        waiting = GaugeMetricFamily("penstock_num_requests_waiting", "Requests in the queue.", labels=["model_name"])
        states = GaugeMetricFamily(
            "penstock_model_state", "1 for the state that the model is in.", labels=["model_name", "state"]
        )
        for model_id, handle in self._handles.items():
            now = handle.state()
            running.add_metric([model_id], now.running)
            waiting.add_metric([model_id], now.waiting)
            for name in get_args(StateName):
                states.add_metric([model_id, name], float(name == now.state))
        return (running, waiting, states)
