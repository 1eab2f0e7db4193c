"""What a job has beside its rows: answers that are there already, from its own earlier input (found
by a key column) or from other jobs (the shared cache), and a report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penstock.batch.cache.shared import CacheChoice
from penstock.batch.decisions.questions import RowQuestions
from penstock.batch.job.forms import check_unset
from penstock.batch.job.keys import RowKeys
from penstock.batch.read.files import is_url
from penstock.batch.read.sources import Source
from penstock.batch.rows.row import RowForm
from penstock.batch.write.outputs import Output
from penstock.batch.write.places import check_place
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.batch.job.job import Job


@dataclass(frozen=True)
class Extras:
    """`keys` of an incremental job's rows, the `cache` that it shares, the path of its `report`."""

    keys: RowKeys | None = None
    cache: CacheChoice | None = None
    report: str | None = None


def extras_of(
    job: Job,
    source: Source,
    output: Output | Literal["-"] | None,
    form: RowForm,
    engines: Sequence[LLMEngine],
    deciding: RowQuestions | None,
) -> Extras:
    """The extras of a job, checked. Raises `ConfigError`."""
    return Extras(
        _keys(job, source, output, form, len(engines)),
        _cache(job, engines, form, deciding),
        _report_place(job.report, source),
    )


def _keys(
    job: Job, source: Source, output: Output | Literal["-"] | None, form: RowForm, engines: int
) -> RowKeys | None:
    """The keys of an incremental job's rows. Raises `ConfigError`."""
    if not job.incremental:
        if job.key is not None:
            raise ConfigError("is for an incremental job", field="key", value=job.key)
        return None
    if not job.key:
        raise ConfigError(
            "needs a key: the column that tells one row from another", field="incremental"
        )
    if not isinstance(output, Output):
        raise ConfigError("needs an output whose job is kept", field="incremental")
    if source.fingerprint is None:
        raise ConfigError(
            "needs an input that can be read twice: files, a table or a frame", field="incremental"
        )
    if engines == 2:
        raise ConfigError(
            "has no meaning for two models, whose sample is of one input", field="incremental"
        )
    return RowKeys(job.key, whole_rows=form.concludes, on_error=job.on_error)


def _cache(
    job: Job, engines: Sequence[LLMEngine], form: RowForm, deciding: RowQuestions | None
) -> CacheChoice | None:
    """The cache that the job shares with others. Raises `ConfigError`."""
    if job.cache is None:
        check_unset(job, ("cache_mb", "cache_days"), "is of a cache, and there is none")
        return None
    if len(engines) != 1:
        why = "whose stages may do anything" if not engines else "whose sample is of one input"
        what = "a processor" if not engines else "two models"
        raise ConfigError(f"has no meaning for {what}, {why}", field="cache")
    if job.adapter is not None:
        raise ConfigError("holds no answers of adapters, whose files may change", field="cache")
    if job.speak is not None:
        raise ConfigError("holds answers, and no spoken files", field="cache")
    if engines[0].name == "remote" and engines[0].model_source == "auto":
        raise ConfigError("needs a model by its name, to tell whose answers it has", field="model")
    if job.cache_days is not None and job.cache_days <= 0:
        raise ConfigError(f"must be above 0, not {job.cache_days}", field="cache_days")
    place = os.fspath(job.cache)
    if not place:
        raise ConfigError("must not be empty", field="cache")
    if os.path.isfile(place):
        raise ConfigError("must be a directory, and is a file", field="cache", value=place)
    return CacheChoice(
        place,
        engines[0],
        {
            "requests": form.kind,
            "on_length": job.on_length,
            "on_invalid_json": job.on_invalid_json,
            "decide": None if deciding is None else deciding.identity(),
            # A stored vector has numbers of this type.
            **({} if job.embed is None else {"vector_type": job.vector_type or "float32"}),
        },
        most_bytes=(job.cache_mb or 10240) << 20,
        days=30 if job.cache_days is None else job.cache_days,
    )


def _report_place(report: str | os.PathLike[str] | None, source: Source) -> str | None:
    """The path of the report. Raises `ConfigError` if it cannot be there."""
    if report is None:
        return None
    path = os.fspath(report)
    if is_url(path) or not path.lower().endswith((".html", ".htm")):
        raise ConfigError("must be a local path ending in .html", field="report", value=path)
    check_place(path, "report", replaced=True)
    if source.is_touched_by_writing(path):
        raise ConfigError(f"{path} lies in the input", field="report")
    return path
