"""Prometheus metrics of the ingress. Nothing counts per token: a request reports at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from penstock.errors import PenstockError
from penstock.serve.models.handle import ModelHandle, StateName

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SECONDS = (*_BUCKETS, 5, 10, 30, 60, 120, 300)
_SHORT = (0.00005, 0.0001, 0.00025, 0.0005, *_BUCKETS)
ENGINE_TIMEOUT_S = 1.0
"""Timeout for the counters of an engine."""
_ENGINE_COUNTERS = frozenset(
    {
        *(
            "steps",
            "prefix_cache_queries",
            "prefix_cache_hits",
            "kv_transfers",
            "kv_transfer_bytes",
        ),
        *("kv_transfer_seconds", "kv_transfer_failures", "kv_expired_requests"),
    }
)


class ModelMetrics:
    """The metrics of one model, with its labels already bound: looking them up takes
    longer than counting.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.cached_tokens = metrics.cached_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.latency = metrics.latency.labels(model)
        self.first_token = metrics.first_token.labels(model)
        self.per_token = metrics.per_token.labels(model)
        self.queue_time = metrics.queue_time.labels(model)
        self.engine_time = metrics.engine_time.labels(model)
        self.framework_time = metrics.framework_time.labels(model)


class Metrics:
    """The metrics of one ingress, in a registry of its own. Names match vLLM's after its prefix."""

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
        self.prompt_tokens = Counter(
            "penstock_prompt_tokens_total", "Tokens of prompts.", by_model, registry=registry
        )
        self.cached_tokens = Counter(
            "penstock_cached_prompt_tokens_total",
            "Tokens of prompts found in a cache.",
            by_model,
            registry=registry,
        )
        self.generation_tokens = Counter(
            "penstock_generation_tokens_total", "Tokens generated.", by_model, registry=registry
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From a request's arrival to its end."
        )
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token."
        )
        self.per_token = histogram(
            "time_per_output_token_seconds",
            "Mean time between the tokens of a streamed request.",
            _SHORT,
        )
        self.queue_time = histogram(
            "request_queue_time_seconds", "Waiting to be admitted to the engine.", _SHORT
        )
        self.engine_time = histogram(
            "request_engine_time_seconds", "Waiting for the engine, its queue included."
        )
        self.framework_time = histogram(
            "request_framework_time_seconds",
            "What a request took beside waiting for the engine.",
            _SHORT,
        )
        self._of_models: dict[str, ModelMetrics] = {}
        self._states = _States(handles)
        registry.register(self._states)
        ProcessCollector(registry=registry)

    def of(self, model: str) -> ModelMetrics:
        """The metrics of one of the ingress's models."""
        found = self._of_models.get(model)
        if found is None:
            found = self._of_models[model] = ModelMetrics(self, model)
        return found

    async def render(self) -> bytes:
        """The page for Prometheus, in its text format."""
        await self._states.ask_engines()
        return generate_latest(self.registry)


class _States(Collector):
    """Collects the models' current states when Prometheus scrapes."""

    def __init__(self, handles: Mapping[str, ModelHandle]) -> None:
        self._handles = handles
        self._engines: dict[str, dict[str, float]] = {}

    async def ask_engines(self) -> None:
        """Fetch the counters of the running engines. Skip an engine that does not
        answer at once.
        """

        async def ask(handle: ModelHandle) -> dict[str, float]:
            try:
                async with asyncio.timeout(ENGINE_TIMEOUT_S):
                    return await handle.engine_metrics()
            except (PenstockError, TimeoutError):
                return {}

        counts = await asyncio.gather(*map(ask, self._handles.values()))
        self._engines = dict(zip(self._handles, counts, strict=True))

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily(
            "penstock_num_requests_running", "Requests being answered.", labels=["model_name"]
        )
        waiting = GaugeMetricFamily(
            "penstock_num_requests_waiting", "Requests in the queue.", labels=["model_name"]
        )
        states = GaugeMetricFamily(
            "penstock_model_state",
            "1 for the state that the model is in.",
            labels=["model_name", "state"],
        )
        loads = CounterMetricFamily(
            "penstock_model_loads", "Starts of the engine.", labels=["model_name"]
        )
        restarts = CounterMetricFamily(
            "penstock_engine_restarts", "Starts of the engine after it died.", labels=["model_name"]
        )
        adapter_loads = CounterMetricFamily(
            "penstock_adapter_loads", "Adapters given to the engine.", labels=["model_name"]
        )
        adapters = GaugeMetricFamily(
            "penstock_adapters_loaded", "Adapters that the engine holds.", labels=["model_name"]
        )
        handoffs = CounterMetricFamily(
            "penstock_prefill_handoffs",
            "Prompts by who computed them: the prefill side (remote), or for what reason not.",
            labels=["model_name", "outcome"],
        )
        for model_id, handle in self._handles.items():
            now = handle.state()
            for outcome, count in now.handoffs.items():
                handoffs.add_metric([model_id, outcome], count)
            loads.add_metric([model_id], now.loads)
            restarts.add_metric([model_id], now.restarts)
            adapter_loads.add_metric([model_id], now.adapter_loads)
            adapters.add_metric([model_id], now.adapters)
            running.add_metric([model_id], now.running)
            waiting.add_metric([model_id], now.waiting)
            for name in get_args(StateName):
                states.add_metric([model_id, name], float(name == now.state))
        of_servers = (running, waiting, states, loads, restarts, adapter_loads, adapters, handoffs)
        return (*of_servers, *self._of_engines())

    def _of_engines(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for model_id, counts in self._engines.items():
            for name, value in counts.items():
                counted = name.removeprefix("prefill_") in _ENGINE_COUNTERS
                kind = CounterMetricFamily if counted else GaugeMetricFamily
                family = families.setdefault(
                    name,
                    kind(f"penstock_engine_{name}", "As the engine tells.", labels=["model_name"]),
                )
                family.add_metric([model_id], value)  # type: ignore[attr-defined]
        return families.values()
