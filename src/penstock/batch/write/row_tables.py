"""Output rows of a processor as Arrow tables: columns are known only from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from penstock.batch.rows.requests import RequestForm
from penstock.batch.rows.row import Outcome, Row
from penstock.batch.values.plain import LEAVES
from penstock.batch.values.to_arrow import kind_of
from penstock.batch.write.tables import ERROR, table_of

_ERROR = pa.struct([*ERROR, ("status", pa.int64()), ("body", pa.string())])
_KEPT = {"status": pa.string(), "error": _ERROR}
"""The columns that each row has where rows that failed are kept."""


class RowTables:
    """Makes the output tables of one job. A column of the input (its `schema`) keeps its type if
    its values fit.
    """

    def __init__(self, form: RequestForm, schema: pa.Schema | None) -> None:
        self._form = form
        self._kinds = {field.name: field.type for field in schema} if schema is not None else {}
        if getattr(form, "keep_errors", False):
            self._kinds |= _KEPT

    def make(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> pa.Table:
        """The output rows of these rows, in this order."""
        made = [
            self._form.output(row, outcome) for row, outcome in zip(rows, outcomes, strict=True)
        ]
        names = dict.fromkeys(name for values in made for name in values)
        columns = {name: [values.get(name) for values in made] for name in names}
        return table_of(columns, len(made), self._kinds)

    def empty(self) -> pa.Table:
        """An output without rows, which has the columns of the input."""
        return pa.schema(list(self._kinds.items())).empty_table()

    def check_storable(self) -> None:
        """What cannot be stored shows in the rows, and becomes text."""


def block(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Some output rows of a run, which others agree with: `error` has its type also where no row
    has one.

    Raises pyarrow's errors for what Arrow cannot hold.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = _KEPT if _KEPT.keys() <= names.keys() else {}
    return pa.table(
        {name: _block_column([row.get(name) for row in rows], kinds.get(name)) for name in names}
    )


def _block_column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None and LEAVES.issuperset(map(type, values)):
        kind = kind_of(values)
        if kind is None:  # Arrow would make some of them like the others
            raise pa.ArrowInvalid("values of kinds that no column holds together")
    return pa.array(values, kind)
