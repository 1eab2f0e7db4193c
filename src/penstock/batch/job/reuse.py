"""What a job takes of answers that are there already: those of its own earlier input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from penstock.batch.read.sources import Source
from penstock.batch.rows.keys import RowKeys
from penstock.batch.rows.row import RowForm
from penstock.batch.write.outputs import Output
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.batch.job.job import Job


def keys_of(
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
    return RowKeys(job.key, whole=form.concludes)
