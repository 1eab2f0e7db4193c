"""Stages: a class of workers, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from penstock.config import unknown_key
from penstock.errors import ConfigError

MAPPING = (dict, Mapping)
"""The classes for `isinstance`: `dict` first, as the check of the abstract class is slow."""
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
"""What stages and functions may ask for. Most of these have a meaning on Ray alone."""


class StageWorker(Protocol):
    """What a stage's `fn` makes: one worker, which lives in one event loop.

    `start` and `stop` may be left out. If `process` is a plain method, a thread of the worker's own
    constructs the worker and calls its plain methods, one row at a time. A worker may have
    `most_in_flight`, the rows that it wants at a time (default: the stage's `batch_size`), and
    `ending`, which is set to True when a job ends and nothing is to be tried again. If each worker
    has a process to itself (on Ray), a class with `shares_rates` true also gets the argument
    `processes`: how many of them share a rate.
    """

    async def start(self) -> None:
        """Load what is needed. Raises `PenstockError`."""

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns that this stage adds to a row, or replaces in it.

        Raises `PenstockError` for a row that cannot be processed.
        """

    async def stop(self) -> None: ...


class StatefulStage:
    """One step of a processor. Nothing runs until the processor does. A stage can be pickled.

    `fn` is a class of workers (`StageWorker`), called with `fn_constructor_kwargs`; None: the
    processor's engine does the step itself, together with its own work. `map_batches_kwargs` say
    how the stage is run: `concurrency` (the number of workers, or a pair of least and most),
    `batch_size` (the rows that a worker has at a time), and what Ray is to reserve for a worker
    (`num_cpus`, `memory`, `runtime_env` …). A subclass may set `fn` in its body.
    """

    fn: type[Any] | None = None
    fn_constructor_kwargs: dict[str, Any]
    map_batches_kwargs: dict[str, Any]
    _required: ClassVar[Mapping[str, str]] = {}
    _optional: ClassVar[Mapping[str, str]] = {}
    _shareable = False

    def __init__(
        self,
        fn: type[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        map_batches_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if fn is not None:
            self.fn = fn
        self.fn_constructor_kwargs = dict(fn_constructor_kwargs or {})
        self.map_batches_kwargs = dict(map_batches_kwargs or {})

    def get_required_input_keys(self) -> dict[str, str]:
        """The columns that every row must have, each with its meaning. A row without one becomes an
        error row. Penstock's own workers check that in `process`.
        """
        return dict(self._required)

    def get_optional_input_keys(self) -> dict[str, str]:
        """The columns that are read if a row has them, each with its meaning."""
        return dict(self._optional)

    def shareable(self, row: Mapping[str, Any]) -> bool:
        """Whether rows that are equal in the columns that this stage reads have equal results. Such
        rows are asked once.
        """
        return self._shareable

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(fn={getattr(self.fn, '__name__', None)},"
            f" {self.map_batches_kwargs})"
        )


def check_stage(stage: object) -> None:
    """Raise `ConfigError` for an object that is not a stage, or whose `fn` is no class of
    workers.
    """
    kind = type(stage).__name__
    if not isinstance(stage, StatefulStage):
        raise ConfigError(
            f"a {kind} is no penstock.batch.StatefulStage", field="stages", value=stage
        )
    if isinstance(stage.fn, type) and not callable(getattr(stage.fn, "process", None)):
        hint = (
            "It takes one row, where a `udf` of ray.data.llm takes a batch."
            if hasattr(stage.fn, "udf")
            else ""
        )
        raise ConfigError(
            f"{stage.fn.__name__} has no method process(row)", field=f"{kind}.fn", hint=hint
        )


def workers(kwargs: Mapping[str, Any], where: str) -> int:
    """The most workers that `map_batches_kwargs` ask for, by Ray's `compute` or by `concurrency`; 1
    by default.

    Raises `ConfigError` for an unknown key, and for a number of workers or of rows that is not
    positive.
    """
    for name in kwargs:
        if name not in KNOWN:
            raise unknown_key(name, KNOWN, field=where)
    _check_positive(kwargs, "batch_size", where)
    most = _check_positive(kwargs, "concurrency", where)
    pool = kwargs.get("compute")
    # A pool of Ray's without a limit has inf.
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
