"""What `map_kwargs` of stages and functions ask for. Most of them mean something on Ray alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError, nearest

KNOWN = (
    *(
        "concurrency",
        "compute",
        "batch_size",
        "num_cpus",
        "num_gpus",
        "memory",
        "resources",
        "accelerator_type",
    ),
    *(
        "runtime_env",
        "scheduling_strategy",
        "label_selector",
        "max_retries",
        "retry_exceptions",
        "max_calls",
    ),
    *(
        "ray_remote_args_fn",
        "udf_modifying_row_count",
        "zero_copy_batch",
        "object_store_memory",
        "num_returns",
    ),
    *(
        "max_concurrency",
        "max_restarts",
        "max_task_retries",
        "max_pending_calls",
        "fallback_strategy",
    ),
    *("placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks"),
    *("enable_task_events", "allow_out_of_order_execution"),
)


def workers(kwargs: Mapping[str, Any], where: str) -> int:
    """The most workers that they ask for, by Ray's `compute` or by `concurrency`; 1 where they say
    nothing.

    Raises `ConfigError` for an unknown key, and for a number of workers or of rows that is not
    positive.
    """
    for name in kwargs:
        if name not in KNOWN:
            raise ConfigError(f"unknown key '{name}'", field=where, hint=nearest(name, KNOWN))
    _check_positive(kwargs, "batch_size", where)
    most = _check_positive(kwargs, "concurrency", where)
    pool = kwargs.get("compute")
    # A pool without a limit has inf.
    sizes = [getattr(pool, name, None) for name in ("max_size", "min_size")]
    return next((size for size in sizes if isinstance(size, int)), most)


def _check_positive(kwargs: Mapping[str, Any], name: str, where: str) -> int:
    given: Any = 1 if kwargs.get(name) is None else kwargs[name]
    numbers = list(given) if isinstance(given, list | tuple) else [given]
    if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ConfigError(
            f"must be a positive number, not {given!r}", field=f"{where}.{name}", value=given
        )
    return int(max(numbers))
