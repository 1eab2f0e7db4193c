"""Prometheus metrics of the ingress. Nothing counts per token: a request reports at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from penstock.errors import PenstockError
from penstock.serve.models.handle import ModelHandle, ModelState, StateName
from penstock.types import Usage

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SECONDS = (*_BUCKETS, 5, 10, 30, 60, 120, 300)
_SHORT = (0.00005, 0.0001, 0.00025, 0.0005, *_BUCKETS)
ENGINE_TIMEOUT_S = 1.0
"""Timeout for the counters of an engine."""
_STATES = (
    (GaugeMetricFamily, "num_requests_running", "Requests being answered.", "running"),
    (GaugeMetricFamily, "num_requests_waiting", "Requests in the queue.", "waiting"),
    (CounterMetricFamily, "model_loads", "Starts of the engine.", "loads"),
    (CounterMetricFamily, "engine_restarts", "Starts of the engine after it died.", "restarts"),
    (CounterMetricFamily, "adapter_loads", "Adapters given to the engine.", "adapter_loads"),
    (GaugeMetricFamily, "adapters_loaded", "Adapters that the engine holds.", "adapters"),
)
"""Each metric's kind, name and text, and the field of `ModelState` that is its value."""
_ENGINE_COUNTERS = frozenset(
    {
        *("steps", "prefix_cache_queries", "prefix_cache_hits", "kv_transfers"),
        *("kv_transfer_bytes", "kv_transfer_seconds", "kv_transfer_failures"),
        *("kv_expired_requests", "batch_evictions", "batch_minimum_share_steps"),
    }
)


_VLLM_NAMES: dict[str, tuple[str, ...]] = {
    **{
        f"penstock_{name}": (f"vllm:{name}",)
        for name in (
            *("num_requests_running", "num_requests_waiting"),
            *("prompt_tokens", "generation_tokens"),
            *("request_prompt_tokens", "request_generation_tokens"),
            *("e2e_request_latency_seconds", "time_to_first_token_seconds"),
            "request_queue_time_seconds",
        )
    },
    "penstock_cached_prompt_tokens": ("vllm:prompt_tokens_cached",),
    "penstock_time_per_output_token_seconds": (
        "vllm:request_time_per_output_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",  # up to vLLM 0.12
    ),
    "penstock_engine_kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "penstock_engine_prefix_cache_queries": ("vllm:prefix_cache_queries",),
    "penstock_engine_prefix_cache_hits": ("vllm:prefix_cache_hits",),
}
"""By the name of our metric, without a counter's ending, the same metrics of vLLM's server."""
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, *(1000 * n for n in (1, 2, 5, 10, 20, 50, 100)))


class ModelMetrics(NamedTuple):
    """The metrics that a request reports to at its end, for all models or labelled with one."""

    prompt_tokens: Counter
    cached_tokens: Counter
    generation_tokens: Counter
    latency: Histogram
    first_token: Histogram
    per_token: Histogram
    queue_time: Histogram
    engine_time: Histogram
    framework_time: Histogram
    request_prompt_tokens: Histogram
    request_generation_tokens: Histogram


class Metrics:
    """The metrics of one ingress, in a registry of its own. Their names match vLLM's but for the
    prefix. With `vllm`, the metrics that vLLM has too are also given under its names.
    """

    def __init__(self, handles: Mapping[str, ModelHandle], *, vllm: bool = False) -> None:
        registry = CollectorRegistry(support_collectors_without_names=True)
        model = ("model_name",)

        def counter(name: str, text: str, labels: tuple[str, ...] = model) -> Counter:
            return Counter(f"penstock_{name}_total", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"penstock_{name}", text, model, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests",
            "Requests answered, by HTTP status; 499 is a client that left.",
            ("model_name", "endpoint", "status"),
        )
        self._of_all = ModelMetrics(
            prompt_tokens=counter("prompt_tokens", "Tokens of prompts."),
            cached_tokens=counter("cached_prompt_tokens", "Tokens of prompts found in a cache."),
            generation_tokens=counter("generation_tokens", "Tokens generated."),
            latency=histogram(
                "e2e_request_latency_seconds", "From a request's arrival to its end."
            ),
            first_token=histogram(
                "time_to_first_token_seconds", "From a request's arrival to its first token."
            ),
            per_token=histogram(
                "time_per_output_token_seconds",
                "Mean time between the tokens of a streamed request.",
                _SHORT,
            ),
            queue_time=histogram(
                "request_queue_time_seconds", "Waiting to be admitted to the engine.", _SHORT
            ),
            engine_time=histogram(
                "request_engine_time_seconds", "Waiting for the engine, its queue included."
            ),
            framework_time=histogram(
                "request_framework_time_seconds",
                "What a request took beside waiting for the engine.",
                _SHORT,
            ),
            request_prompt_tokens=histogram(
                "request_prompt_tokens", "Tokens of a request's prompt.", _TOKENS
            ),
            request_generation_tokens=histogram(
                "request_generation_tokens", "Tokens generated for a request.", _TOKENS
            ),
        )
        self._of_models: dict[str, ModelMetrics] = {}
        self._states = _States(handles)
        registry.register(self._states)
        ProcessCollector(registry=registry)
        self._registries = [registry]
        if vllm:
            self._registries.append(CollectorRegistry(support_collectors_without_names=True))
            self._registries[-1].register(VllmMetrics(registry, self._states))

    def of(self, model: str) -> ModelMetrics:
        """The metrics of one of the ingress's models."""
        found = self._of_models.get(model)
        if found is None:  # binding a label takes longer than counting
            found = ModelMetrics._make(metric.labels(model) for metric in self._of_all)
            self._of_models[model] = found
        return found

    def count_tokens(self, model: str, usage: Usage) -> ModelMetrics:
        """Count the tokens of an answer. Returns the model's metrics."""
        metrics = self.of(model)
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.cached_tokens.inc(usage.cached_tokens)
        metrics.generation_tokens.inc(usage.completion_tokens)
        return metrics

    async def render(self, names: Collection[str] = ()) -> bytes:
        """The page for Prometheus, in its text format: all samples, or those with these names."""
        await self._states.ask_engines()
        return b"".join(
            generate_latest(one.restricted_registry(names) if names else one)
            for one in self._registries
        )


class VllmMetrics(Collector):
    """The metrics under vLLM's names, for dashboards and gateways that were made for it."""

    def __init__(self, ours: Collector, states: _States) -> None:
        self._ours = ours
        self._states = states

    def collect(self) -> Iterable[Metric]:
        for family in self._ours.collect():
            for name in _VLLM_NAMES.get(family.name, ()):
                renamed = Metric(name, family.documentation, family.type)
                renamed.samples = [
                    sample._replace(name=name + sample.name.removeprefix(family.name))
                    for sample in family.samples
                ]
                yield renamed
        yield self._states.adapters()


class _States(Collector):
    """Collects the models' current states when Prometheus scrapes."""

    def __init__(self, handles: Mapping[str, ModelHandle]) -> None:
        self._handles = handles
        self._engines: dict[str, dict[str, float]] = {}

    async def ask_engines(self) -> None:
        """Fetch the counters of the running engines."""
        counts = await asyncio.gather(*map(engine_counters, self._handles.values()))
        self._engines = dict(zip(self._handles, counts, strict=True))

    def collect(self) -> Iterable[Metric]:
        now = {model_id: handle.state() for model_id, handle in self._handles.items()}
        yield from _families({(model_id,): state for model_id, state in now.items()})
        handoffs = CounterMetricFamily(
            "penstock_prefill_handoffs",
            "Prompts by who computed them: the prefill side (remote), or for what reason not.",
            labels=["model_name", "outcome"],
        )
        for model_id, state in now.items():
            for outcome, count in state.handoffs.items():
                handoffs.add_metric([model_id, outcome], count)
        yield handoffs
        yield from _families(
            {
                (model_id, replica): state
                for model_id, model in now.items()
                for replica, state in model.replicas.items()
            },
            of="replica",
        )
        yield from self._of_engines()

    def adapters(self) -> Metric:
        """vLLM's `lora_requests_info`: which adapters are loaded. The value is the time, as in
        vLLM.
        """
        labels = ["model_name", "max_lora", "waiting_lora_adapters", "running_lora_adapters"]
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that are loaded, and how many may be.",
            labels=labels,
        )
        for model_id, handle in self._handles.items():
            if (most := (state := handle.state()).max_adapters) or state.adapter_names:
                family.add_metric(
                    [model_id, str(most), "", ",".join(state.adapter_names)], time.time()
                )
        return family

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


def _families(
    states: Mapping[tuple[str, ...], ModelState], of: Literal["model", "replica"] = "model"
) -> Iterable[Metric]:
    """The metrics of model states, labelled by model; or by replica, for models that have several
    here.
    """
    labels, prefix, note = ["model_name"], "penstock_", ""
    if of == "replica":
        labels, prefix, note = [*labels, "replica"], "penstock_replica_", " Of one replica."
    for kind, name, text, field in _STATES:
        family = kind(f"{prefix}{name}", f"{text}{note}", labels=labels)
        for names, state in states.items():
            family.add_metric(names, getattr(state, field))
        yield family
    now = GaugeMetricFamily(
        f"penstock_{of}_state", f"1 for the state that the {of} is in.", labels=[*labels, "state"]
    )
    for names, state in states.items():
        for state_name in get_args(StateName):
            now.add_metric([*names, state_name], float(state_name == state.state))
    yield now


async def engine_counters(handle: ModelHandle) -> dict[str, float]:
    """The metrics of a model's engine; empty if the engine does not answer at once."""
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT_S):
            return await handle.engine_metrics()
    except (PenstockError, TimeoutError):
        return {}
