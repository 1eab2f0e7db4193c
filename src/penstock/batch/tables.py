"""Output rows as Arrow tables.

Input columns keep their Arrow types, parsed fields have those of the JSON Schema, the rest is fixed. A column
whose values
have no common type becomes text: strings as they are, anything else as JSON.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from penstock.batch.requests import ColumnRequests
from penstock.batch.rows import Outcome, Row
from penstock.batch.structured import Schema
from penstock.errors import OutputError

ERROR = pa.struct([("type", pa.string()), ("stage", pa.string()), ("retryable", pa.bool_()), ("message", pa.string())])
USAGE = pa.struct([("prompt_tokens", pa.int64()), ("completion_tokens", pa.int64()), ("cached_tokens", pa.int64())])
_DEEPEST = 8
_CONVERSION_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class Tables:
    """Makes the output tables of one job. `schema` and `columns` describe its input, as far as they are known."""

    def __init__(self, form: ColumnRequests, schema: pa.Schema | None, columns: Sequence[str]) -> None:
        self._form = form
        self._input = schema.remove_metadata() if schema is not None else None
        self._columns = columns
        types = [pa.string(), *_field_types(form.schema)]
        types += [pa.string(), ERROR, pa.string(), USAGE, pa.int64(), pa.float64()]
        self._result = pa.schema(list(zip(form.result_columns, types, strict=True)))

    def make(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> pa.Table:
        """The output rows of these rows, in this order."""
        table = self._input_table(rows)
        results = zip(*(self._form.results(outcome) for outcome in outcomes), strict=True)
        for field, values in zip(self._result, results, strict=True):
            column = array(list(values), field.type)
            table = table.append_column(field.with_type(column.type), column)
        return table

    def empty(self) -> pa.Table:
        """An output without rows; input columns of unknown type are text."""
        fields = list(self._input or [pa.field(name, pa.string()) for name in self._columns])
        return pa.schema([*fields, *self._result]).empty_table()

    def check_storable(self) -> None:
        """Raise `OutputError` if Parquet has no place for a type of the input."""
        import pyarrow.parquet as pq

        try:
            schema = unify([self.empty().schema])
            with pq.ParquetWriter(pa.BufferOutputStream(), schema) as writer:
                writer.write_table(schema.empty_table())
        except pa.ArrowException as error:
            raise OutputError(f"the columns cannot be written as Parquet: {str(error).splitlines()[0]}") from error

    def _input_table(self, rows: Sequence[Row]) -> pa.Table:
        if rows and all(row.batch is not None for row in rows):
            batches = {id(row.batch): row.batch for row in rows if row.batch is not None}
            sizes = [batch.num_rows for batch in batches.values()]
            starts = dict(zip(batches, itertools.accumulate(sizes, initial=0), strict=False))
            whole = _joined([pa.Table.from_batches([batch]) for batch in batches.values()])
            places = [starts[id(row.batch)] + row.offset for row in rows]
            if places == list(range(places[0], places[0] + len(places))):
                return whole.slice(places[0], len(places))
            return whole.unify_dictionaries().take(pa.array(places, pa.int64()))
        names = dict.fromkeys(self._columns)
        for row in rows:
            names.update(dict.fromkeys(row.values or ()))
        taken = set(self._result.names)
        values = {name: [(row.values or {}).get(name) for row in rows] for name in names if name not in taken}
        if not values:  # a table cannot count rows without columns
            return pa.table({"": pa.nulls(len(rows))}).select([])
        return pa.table({name: array(column) for name, column in values.items()})


def _joined(tables: list[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(None)
    except pa.ArrowException:  # files of one data set may not agree on a type
        schema = unify([table.schema for table in tables])
        return pa.concat_tables([conform(table, schema) for table in tables])


def array(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    """An Arrow array of type `kind` (None: found from the values), or of text where the values do not fit."""
    try:
        column = pa.array(values, kind)
        if _storable(column.type):
            return column
    except _CONVERSION_ERRORS:
        pass
    return pa.array([_text(value) for value in values], pa.string())


def unify(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema that tables of all these schemas can take, columns in order of first appearance."""
    kinds: dict[str, list[pa.Field]] = {}
    for schema in schemas:
        for field in schema:
            known = kinds.setdefault(field.name, [])
            if not any(field.type == other.type for other in known):
                known.append(field)
    return pa.schema([_common(name, fields) for name, fields in kinds.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly these columns: missing ones null, others cast."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        columns.append(column if column.type == field.type else _cast(column, field.type))
    return pa.table(columns, schema=schema)


def _common(name: str, fields: list[pa.Field]) -> pa.Field:
    if len(fields) == 1:
        kind = fields[0].type
        return pa.field(name, pa.string() if kind == pa.null() else kind)
    try:
        merged = pa.unify_schemas([pa.schema([f]) for f in fields], promote_options="permissive").field(0)
        return pa.field(name, merged.type)
    except pa.ArrowException:
        return pa.field(name, pa.string())


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if kind != pa.string() or column.type in (pa.null(), pa.large_string()):
        try:
            return column.cast(kind, safe=False)
        except pa.ArrowException:
            return array(column.to_pylist(), kind)
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _storable(kind: pa.DataType) -> bool:
    """Whether Parquet can hold the type: it has no place for objects without fields."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_storable(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_list(kind):
        return _storable(kind.value_type)
    return True


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else value.encode(errors="replace").decode()
    return msgspec.json.encode(value, enc_hook=str).decode()


def _field_types(schema: Schema | None) -> list[pa.DataType]:
    return [_field_type(schema, part) for part in schema.properties.values()] if schema is not None else []


def _field_type(schema: Schema, part: Any, depth: int = 0) -> pa.DataType:
    part = schema.resolve(part)
    if depth > _DEEPEST:
        return pa.string()  # a schema that contains itself has no end
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
        return pa.struct([(key, _field_type(schema, inner, depth + 1)) for key, inner in properties.items()])
    return pa.string()  # an enumeration, or anything whose type the schema leaves open: text, or JSON


def from_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of dicts, columns in order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: array([row.get(name) for row in rows]) for name in names})
