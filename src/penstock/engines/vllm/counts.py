"""What a running vLLM counts: requests, its KV cache, and the caches that it exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Counts:
    """Takes the place of vLLM's own loggers. vLLM makes it, and calls `record` for each step."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._latest: dict[int, Any] = {}

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> Counts:
        """vLLM asks for a logger an engine rank: this one serves them all."""
        return self

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add what a step tells."""
        if scheduler_stats is None:
            return
        self._latest[engine_idx] = scheduler_stats
        self._add("steps", 1)
        cache = scheduler_stats.prefix_cache_stats
        self._add("prefix_cache_queries", cache.queries)
        self._add("prefix_cache_hits", cache.hits)
        for told in _nixl(scheduler_stats.kv_connector_stats or {}):
            self._add("kv_transfers", len(told.get("transfer_duration", ())))
            self._add("kv_transfer_bytes", sum(told.get("bytes_transferred", ())))
            self._add("kv_transfer_seconds", sum(told.get("transfer_duration", ())))
            failed = ("num_failed_transfers", "num_failed_handshakes", "num_failed_notifications")
            self._add("kv_transfer_failures", sum(sum(told.get(name, ())) for name in failed))
            self._add("kv_expired_requests", sum(told.get("num_kv_expired_reqs", ())))

    def now(self) -> dict[str, float]:
        """All counts, and what is under way."""
        latest = self._latest.values()
        return {
            **self.values,
            "requests_running": sum(stats.num_running_reqs for stats in latest),
            "requests_waiting": sum(stats.num_waiting_reqs for stats in latest),
            "kv_cache_usage": max((stats.kv_cache_usage for stats in latest), default=0.0),
        }

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...

    def _add(self, name: str, amount: float) -> None:
        self.values[name] = self.values.get(name, 0) + amount


def _nixl(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """NIXL's part of what the connector tells: all of it, or one of several connectors'."""
    if "transfer_duration" in stats:
        return [stats]
    parts = [part.get("data", part) if isinstance(part, Mapping) else {} for part in stats.values()]
    return [part for part in parts if "transfer_duration" in part]
