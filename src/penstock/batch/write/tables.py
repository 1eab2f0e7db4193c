"""Output rows as Arrow tables.

Input columns keep their Arrow types, parsed fields have the types of the JSON Schema, other columns
have fixed types. A column whose values have no common type becomes text: strings unchanged, other
values as `values.text` makes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.structured import Schema
from penstock.batch.values.arrow import array, kind_of, texts
from penstock.batch.values.common_type import (
    as_text,
    conform,
    unify,
    unify_tables,
)
from penstock.batch.values.plain import LEAVES, UnstorableError
from penstock.errors import OutputError

if TYPE_CHECKING:
    from penstock.batch.rows.requests import ColumnRequests

ERROR = pa.struct(
    [
        ("type", pa.string()),
        ("stage", pa.string()),
        ("retryable", pa.bool_()),
        ("message", pa.string()),
    ]
)
USAGE = pa.struct(
    [
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
    ]
)
_DEEPEST = 8
_ERROR = pa.struct([*ERROR, ("status", pa.int64()), ("body", pa.string())])
_KEPT = {"status": pa.string(), "error": _ERROR}
"""The further columns of each row, if failed rows are kept."""


class ColumnTables:
    """The output tables of a job whose answers become columns beside the input's.

    `schema` and `columns` describe the input, as far as they are known.
    """

    def __init__(
        self, form: ColumnRequests, schema: pa.Schema | None, columns: Sequence[str]
    ) -> None:
        self._form = form
        self._input = schema.remove_metadata() if schema is not None else None
        self._columns = columns
        self._fields = range(1, 1 + len(form.fields))

    def make(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> pa.Table:
        """The output rows of these rows, in this order."""
        table = self._input_table(rows)
        results = list(zip(*(self._form.results(outcome) for outcome in outcomes), strict=True))
        for place, (field, values) in enumerate(zip(self._results(), results, strict=True)):
            column = (_field if place in self._fields else _own)(values, field.type)
            table = table.append_column(field.with_type(column.type), column)
        return table

    def empty(self) -> pa.Table:
        """An output without rows; input columns of unknown type are text."""
        fields = list(self._input or [pa.field(name, pa.string()) for name in self._columns])
        return _empty(unify([pa.schema([*fields, *self._results()])]))

    def _results(self) -> pa.Schema:
        """The result columns. A vector's width may be known only with the first results."""
        names, kinds = self._form.result_columns, self._form.arrow_types()
        return pa.schema(list(zip(names, kinds, strict=True)))

    def check_storable(self) -> None:
        """Raise `OutputError` if Parquet cannot hold a type of the input."""
        refused = [field for field in self._input or () if not _has_place(field)]
        if refused:
            kinds = ", ".join(f"'{field.name}' ({field.type})" for field in refused)
            raise OutputError(
                f"columns cannot be written as Parquet, which has no such type: {kinds}; "
                "leave them out, or write .jsonl or .csv"
            )

    def _input_table(self, rows: Sequence[Row]) -> pa.Table:
        # All rows of a source have an Arrow form, or none has.
        batches = {id(batch): batch for row in rows if (batch := row.record_batch) is not None}
        if batches:
            sizes = [batch.num_rows for batch in batches.values()]
            starts = dict(zip(batches, itertools.accumulate(sizes, initial=0), strict=False))
            whole = _joined([pa.Table.from_batches([batch]) for batch in batches.values()])
            places = [starts[id(row.record_batch)] + row.offset for row in rows]
            if places == list(range(places[0], places[0] + len(places))):
                return whole.slice(places[0], len(places))
            return whole.unify_dictionaries().take(pa.array(places, pa.int64()))
        names = dict.fromkeys(self._columns)
        for row in rows:
            names.update(dict.fromkeys(row.values or ()))
        taken = set(self._form.result_columns)
        values = {
            name: [(row.values or {}).get(name) for row in rows]
            for name in names
            if name not in taken
        }
        return table_of(values, len(rows))


class RowTables:
    """The output tables of a job whose columns are known only from its rows.

    A column of the input, whose schema is `schema`, keeps its type if its values fit.
    """

    def __init__(self, form: RowForm, schema: pa.Schema | None, *, keeps_errors: bool) -> None:
        self._form = form
        self._kinds = {field.name: field.type for field in schema} if schema is not None else {}
        if keeps_errors:
            self._kinds |= _KEPT

    def make(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> pa.Table:
        """The output rows of these rows, in this order."""
        made = map(self._form.output, rows, outcomes)
        return from_rows(list(made), self._kinds)

    def empty(self) -> pa.Table:
        """An output without rows, which has the columns of the input."""
        return _empty(pa.schema(list(self._kinds.items())))

    def check_storable(self) -> None:
        """Does nothing: values that cannot be stored are found in the rows, and become text."""


Tables = ColumnTables | RowTables
"""The makers of output tables."""


def _field(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A field of the answers. If the schema leaves its type open, it is text."""
    return texts(values) if kind == pa.string() else array(values, kind)


def _own(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A result column, whose values have this type."""
    try:
        return pa.array(values, kind)
    except (UnicodeEncodeError, OverflowError):
        return array(values, kind)


def table_of(
    values: Mapping[str, Sequence[Any]], rows: int, kinds: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """A table of columns. `kinds` are their types, as far as these hold the values.

    Raises `OutputError`, which names the column.
    """
    if not values:  # a table cannot count rows without columns
        return pa.table({"": pa.nulls(rows)}).select([])
    columns = {}
    for name, column in values.items():
        try:
            columns[name] = array(column, (kinds or {}).get(name))
        except UnstorableError as error:
            raise OutputError(f"column '{name}' cannot be stored: {error}") from error
    return pa.table(columns)


def _joined(tables: list[pa.Table]) -> pa.Table:
    tables = [table.replace_schema_metadata(None) for table in tables]
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables)
    schema = unify_tables(tables)
    return pa.concat_tables([conform(table, schema) for table in tables])


def storable(table: pa.Table) -> pa.Table:
    """The table, with columns that Parquet cannot hold turned into text."""
    for place, name in enumerate(table.column_names):
        if not _can_be_written(table.select([name])):
            table = table.set_column(place, name, as_text(table.column(name)))
    return table


def _empty(schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([], schema)  # `schema.empty_table` fails for tensors


def _has_place(field: pa.Field) -> bool:
    return _can_be_written(_empty(pa.schema([field])))


def _can_be_written(table: pa.Table) -> bool:
    import pyarrow.parquet as pq

    written = pa.BufferOutputStream()
    try:
        pq.write_table(table, written)
        pq.read_schema(pa.BufferReader(written.getvalue()))  # reading has a limit of its own
    except (pa.ArrowException, OSError):
        return False
    return True


def field_types(schema: Schema) -> list[pa.DataType]:
    """The types of the fields of answers that follow a JSON Schema."""
    return [_field_type(schema, part) for part in schema.properties.values()]


def _field_type(schema: Schema, part: Any, depth: int = 0) -> pa.DataType:
    part = schema.resolve(part)
    if depth > _DEEPEST:
        return pa.string()  # the schema contains itself
    choices = [schema.resolve(choice) for choice in part.get("anyOf") or part.get("oneOf") or ()]
    present = [choice for choice in choices if choice.get("type") != "null"]
    if len(present) == 1:
        return _field_type(schema, present[0], depth + 1)
    kinds = part.get("type")
    names = [name for name in (kinds if isinstance(kinds, list) else [kinds]) if name != "null"]
    name = names[0] if len(names) == 1 else None
    simple: Mapping[str | None, pa.DataType] = {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
    }
    if name in simple:
        return simple[name]
    if name == "array" and isinstance(part.get("items"), dict):
        return pa.list_(_field_type(schema, part["items"], depth + 1))
    properties = part.get("properties")
    if name == "object" and properties:
        return pa.struct(
            [(key, _field_type(schema, inner, depth + 1)) for key, inner in properties.items()]
        )
    if name is None and (named := part.get("enum") or [part.get("const")]):
        kind = kind_of(named)
        if kind is not None and kind != pa.null() and not pa.types.is_nested(kind):
            return kind
    return pa.string()  # the schema leaves the type open: text, or JSON


def from_rows(
    rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """A table of dicts, columns in order of first appearance. Raises `OutputError`."""
    return table_of(_columns(rows), len(rows), kinds)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def block(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of some output rows of a run. `error` has the same type in all such tables.

    Raises pyarrow's errors for a value that Arrow cannot hold.
    """
    columns = _columns(rows)
    kinds = _KEPT if _KEPT.keys() <= columns.keys() else {}
    return pa.table(
        {name: _block_column(values, kinds.get(name)) for name, values in columns.items()}
    )


def _block_column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    if kind is None and LEAVES.issuperset(map(type, values)):
        kind = kind_of(values)
        if kind is None:  # Arrow would convert some of the values to the type of others
            raise pa.ArrowInvalid("values of kinds that no column holds together")
    return pa.array(values, kind)
