"""A processor: what happens to each row of a data set, from preprocess over the stages to
postprocess.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, overload

from penstock import runtimes
from penstock.batch.pipeline.configs import ProcessorConfig
from penstock.batch.pipeline.processor_rows import Held, ProcessorRows, RowFunction
from penstock.batch.pipeline.stream import RowStream
from penstock.batch.read.base import HasRows
from penstock.batch.stages.base import StatefulStage, check_stage, workers
from penstock.errors import ConfigError, UnknownStageError, nearest

Listed = (
    Sequence[Mapping[str, Any]] | Iterator[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]
)
Rows = str | PathLike[str] | Listed | HasRows
"""What type checkers know to be no Ray data set; such a one has an `__iter__` that raises."""

_log = logging.getLogger(__name__)


class Processor:
    """Stages in their order, with what comes before and after. Call it on a data set;
    `build_processor` makes it.

    `preprocess` takes a row as a dict and returns the columns that the stages read: they are added
    to the row's own. `postprocess` takes the row with all columns and returns the output row. Both
    are plain functions and may be slow. Of their `map_kwargs`, `concurrency` is the number of
    threads; the others are for Ray.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        stages: Sequence[StatefulStage],
        preprocess: RowFunction | None = None,
        postprocess: RowFunction | None = None,
        preprocess_map_kwargs: Mapping[str, Any] | None = None,
        postprocess_map_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        for name, function in (("preprocess", preprocess), ("postprocess", postprocess)):
            if function is not None and not _is_plain(function):
                raise ConfigError(
                    "must be a plain function that takes a row and returns a dict", field=name
                )
        self.config = config
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.preprocess_map_kwargs = dict(preprocess_map_kwargs or {})
        self.postprocess_map_kwargs = dict(postprocess_map_kwargs or {})
        self._threads = (
            workers(self.preprocess_map_kwargs, "preprocess_map_kwargs"),
            workers(self.postprocess_map_kwargs, "postprocess_map_kwargs"),
        )
        self.stages: dict[str, StatefulStage] = {}
        for stage in stages:
            check_stage(stage)
            kind = type(stage).__name__
            same = sum(type(other).__name__ == kind for other in self.stages.values())
            self.stages[f"{kind}_{same + 1}" if same else kind] = stage

    @overload
    def __call__(
        self, dataset: Rows, *, order: Literal["input", "done"] = "input"
    ) -> RowStream: ...

    @overload
    def __call__(self, dataset: Any, *, order: Literal["input", "done"] = "input") -> Any: ...

    def __call__(self, dataset: Any, *, order: Literal["input", "done"] = "input") -> Any:
        """The output rows for a data set: a path, a table or frame, an (async) iterable of dicts, a
        `Job` or its result, or what another processor gives.

        Returns a `RowStream`; for a Ray data set a Ray data set. Raises `ConfigError` for stages
        that ask for what there is not.
        """
        for name, stage in self.stages.items():  # they may have been changed since they were made
            check_stage(stage)
            workers(stage.map_batches_kwargs, name)
        if (elsewhere := runtimes.runtime_of(dataset)) is not None:
            return runtimes.load(runtimes.DATASETS, elsewhere)(self, dataset)
        return RowStream(self, dataset, order=order)

    def list_stage_names(self) -> list[str]:
        """The stages' names, in order: their kinds, numbered from the second of a kind on."""
        return list(self.stages)

    def get_stage_by_name(self, name: str) -> StatefulStage:
        """The stage of that name. Raises `ConfigError`, which is a `ValueError` here too."""
        try:
            return self.stages[name]
        except KeyError:
            raise UnknownStageError(
                f"there is no stage '{name}'", value=name, hint=nearest(name, self.stages)
            ) from None

    def log_input_column_names(self) -> None:
        """Log the columns that the first stage reads."""
        if not self.stages:
            _log.info("The processor has no stages.")
            return
        name, stage = next(iter(self.stages.items()))
        lines = [f"The first stage of the processor is {name}."]
        for title, keys in (
            ("Required input columns:", stage.get_required_input_keys()),
            ("Optional input columns:", stage.get_optional_input_keys()),
        ):
            if keys:
                lines += [title, *(f"\t{key}: {meaning}" for key, meaning in keys.items())]
        _log.info("\n".join(lines))

    def rows(self, *, held: Held = "values", keep_errors: bool | None = None) -> ProcessorRows:
        """The form of this processor's rows, for one run in the running event loop."""
        return ProcessorRows(
            self.stages,
            self.preprocess,
            self.postprocess,
            threads=self._threads,
            keep_errors=self.config.should_continue_on_error
            if keep_errors is None
            else keep_errors,
            held=held,
        )

    def __repr__(self) -> str:
        return f"Processor({self.config!r}, stages={self.list_stage_names()})"


def _is_plain(function: object) -> bool:
    return callable(function) and not inspect.iscoroutinefunction(function)
