"""Output rows of a processor: where rows that failed are kept, good and bad ones have the same
columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.batch.rows.row import FailedRow, RowError

ERROR_FIELDS = RowError.__struct_fields__


class OutputRows:
    """Makes them, for one run.

    With `keep` each row has the columns of the input, those that the processor makes, `status` and
    `error`: in a good row a column of the input that it no longer has is null, in one that failed
    what was to be made is. What that is shows in a good row (`known`), so `learn` of it as soon as
    there is one.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._names: dict[str, None] = {}

    @property
    def known(self) -> bool:
        """Whether all columns of a row that failed are known."""
        return bool(self._names) or not self._keep

    def learn(self, values: Mapping[str, Any] | None, made: Mapping[str, Any]) -> None:
        """Note the columns of a good row: those of its input, and those that were made."""
        if not self._keep:
            return
        for columns in (values or {}, made):
            if not self._names.keys() >= columns.keys():
                self._names.update(dict.fromkeys(columns))

    def good(self, values: Mapping[str, Any] | None, made: dict[str, Any]) -> dict[str, Any]:
        """The output row of what was made of an input row."""
        if not self._keep:
            return made
        return {**dict.fromkeys(values or ()), **made, "status": "ok", "error": None}

    def bad(self, values: Mapping[str, Any] | None, error: RowError) -> dict[str, Any]:
        """The output row of an input row that failed, or that could not be read."""
        said = {name: getattr(error, name) for name in ERROR_FIELDS}
        row = dict(values or {})
        for name in self._names:
            row.setdefault(name)
        return FailedRow({**row, "status": "error", "error": said}, error)
