"""Forms whose rows are one request each to one engine: jobs with a prompt or a messages column.
From a row to a chat request, and from its answer to an output row.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from penstock.batch.read.sources import Source, check_column
from penstock.batch.rows.images import RowImages
from penstock.batch.rows.repair import Repair, collect, invalid_json, one_text
from penstock.batch.rows.row import Outcome, Row, RowForm
from penstock.batch.structured import Schema
from penstock.batch.values.plain import UnstorableError, plain_row, text as plain_text
from penstock.engines.base import LLMEngine
from penstock.engines.sampling import check_sampling
from penstock.errors import ConfigError, RequestError, UnsupportedError
from penstock.openai.media.images import given_in, is_pillow, name_of, part_with
from penstock.openai.media.parts import MEDIA_PARTS, with_media
from penstock.openai.requests import check_messages
from penstock.parsing import decode_json
from penstock.types import ChatRequest, Message, Sampling

if TYPE_CHECKING:
    import pyarrow as pa

    from penstock.batch.write.tables import Tables

RESULT_COLUMNS = ("status", "error", "finish_reason", "usage", "attempts", "latency_ms")
END_COLUMNS = ("status", "error", "usage", "attempts", "latency_ms")
"""How a row ended: the last columns of forms whose answers are not generated text."""
ERROR_FIELDS = ("type", "stage", "retryable", "message")
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "cached_tokens")
FLAT_OBJECTS = {
    name: [f"{name}.{part}" for part in parts]
    for name, parts in (("error", ERROR_FIELDS), ("usage", USAGE_FIELDS))
}
"""By result column that holds an object, its columns in an output that flattens objects."""
_ASK = partial(collect, convert=one_text)
_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

_JSON_MARKS = frozenset('":,\n')  # braces with these hold a JSON object rather than a column's name
_DOUBLE = "Write '{{' or '}}' for a brace in the text"


class EngineForm(RowForm):
    """A form whose rows are one request each to one engine.

    `repair` says when a row is asked again with another request.
    """

    repair = Repair()

    @abstractmethod
    def ask(self, engine: LLMEngine, row: Row) -> Awaitable[Outcome]:
        """The row's outcome. Raises what the engine raises."""

    def check_engine(self, engine: LLMEngine) -> None:
        """Raise `PenstockError` if the running engine could answer no row of this form."""


class ColumnRequests(EngineForm):
    """Chat requests from a prompt template or a column of messages; answers become columns.

    `adapter_column` holds each row's adapter name (null or empty: none); without it `adapter` is
    that of all rows. `image` is a column of images or videos, which are put before the text.
    `prefix` goes before the name of each result column. `values_for` is the form of the output, if
    rows may have values that JSON does not have; a row with a value that the output cannot hold
    fails.
    """

    def __init__(
        self,
        *,
        template: Template | None = None,
        messages: str | None = None,
        system: str | None = None,
        image: str | None = None,
        sampling: Sampling,
        schema: Schema | None = None,
        adapter: str | None = None,
        adapter_column: str | None = None,
        prefix: str = "",
        repair: Repair | None = None,
        values_for: Literal["json", "parquet"] | None = None,
    ) -> None:
        self._values_for = values_for
        self.repair = repair or Repair()
        self._template = template
        self._messages = messages
        self._system: list[Message] = (
            [{"role": "system", "content": system}] if system is not None else []
        )
        self.sampling = sampling
        self.schema = schema
        self._adapter = adapter
        self._adapter_column = adapter_column
        self._deterministic = sampling.is_deterministic
        self._encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=str).encode
        self._digest = blake2b(self._encode((sampling, self._system)), digest_size=16)
        asked = template.columns if template is not None else (messages or "",)
        self._image = image
        self._images = RowImages(image, messages) if image or messages else None
        self.columns = (*asked, *filter(None, (image, adapter_column)))
        self.fields = schema.fields if schema else ()
        for name in self.fields:
            if name in ("response", *RESULT_COLUMNS):
                raise ConfigError(
                    f"the field '{name}' has the name of a result column",
                    field="schema",
                    hint="Rename the field",
                )
        self._name_columns(("response", *self.fields, *RESULT_COLUMNS), FLAT_OBJECTS, prefix)
        self._blank: dict[str, Any] = {}

    def _name_columns(
        self, names: Sequence[str], parts: Mapping[str, Sequence[str]], prefix: str
    ) -> None:
        """Set the names of the result columns; `parts` has those of objects taken apart."""
        self.result_columns = tuple(prefix + name for name in names)
        self._results = frozenset(self.result_columns)
        self.flat_columns = tuple(
            prefix + flat for name in names for flat in parts.get(name, [name])
        )

    def check(
        self, columns: Sequence[str], every: Sequence[str] | None, *, flat: bool = False
    ) -> None:
        """Raise `ConfigError` if the data lacks a needed column, or has one with a result column's
        name.

        `every` are all columns that rows may have; None if unknown: then a row that lacks a column
        becomes an error row. `flat`: the output flattens objects, so it has result columns such as
        `error.type`.
        """
        self._blank = dict.fromkeys(columns)
        if self._template is not None:
            self._template.check(columns if every is None else every, complete=every is not None)
        else:
            check_column(self._messages or "", every, "messages")
        if self._image is not None:
            check_column(self._image, every, "image")
        results = self._results.union(self.flat_columns) if flat else self._results
        taken = [name for name in columns if name in results]
        if taken:
            raise ConfigError(
                f"the data has columns with the names of result columns: {', '.join(taken)}",
                field="result_prefix",
                hint="Set one with --result-prefix, such as 'out_'",
            )

    async def ready(self, rows: list[Row]) -> AsyncIterator[list[Row]]:
        if self._images is None:
            yield self._stored(rows)
            return
        async for some in self._images.load(rows):
            yield self._stored(some)

    def close(self) -> None:
        if self._images is not None:
            self._images.close()

    def _stored(self, rows: list[Row]) -> list[Row]:
        """The rows with values that the output can hold."""
        if self._values_for is not None:
            for row in rows:
                if row.values is not None:
                    row.values, wrong = plain_row(row.values, json=self._values_for == "json")
                    row.failure = row.failure if wrong is None else RequestError(wrong)
        return rows

    def prepare(self, row: Row) -> None:
        values = row.values
        assert values is not None
        if not self._results.isdisjoint(values):
            taken = ", ".join(sorted(self._results.intersection(values)))
            raise RequestError(f"the row has columns with the names of result columns: {taken}")
        adapter = self._adapter
        if self._adapter_column is not None:
            adapter = as_text(values.get(self._adapter_column)) or None
        content: Any
        if self._template is not None:
            content = text = self._template.render(values)
            row.blank = self._template.is_blank(values)
            parts: Any = text
            if self._image is not None:
                if self._image not in values:
                    raise RequestError(f"the row has no column '{self._image}'", param=self._image)
                if images := list(chain.from_iterable(row.images or ())):
                    row.blank = False
                    content = [*images, text]
                    parts = [*map(part_with, images), {"type": "text", "text": text}]
                    text = f"{' '.join(map(name_of, images))} {text}"
            messages = [*self._system, {"role": "user", "content": parts}]
        else:
            messages = content = self._conversation(values, row.images)
            text = conversation_text(messages)
        digest = self._digest.copy()
        try:
            digest.update(self._encode((content, adapter)))
        except UnicodeEncodeError:
            raise RequestError("the prompt holds text that is no valid Unicode") from None
        except OverflowError:
            raise RequestError("the prompt holds an integer of more than 64 bits") from None
        row.request = ChatRequest(
            messages=messages, sampling=self.sampling, adapter=adapter, stream=False
        )
        row.digest = digest.digest()
        row.shareable = self._deterministic
        row.prefix = text if adapter is None else f"{adapter}\0{text}"

    def check_engine(self, engine: LLMEngine) -> None:
        check_sampling(self.sampling, 1, engine.capabilities, engine.name)
        self.check_sees(engine)

    def check_sees(self, engine: LLMEngine) -> None:
        """Raise `UnsupportedError` if rows have images and the engine reads text alone."""
        inputs = engine.capabilities.inputs
        if self._image is not None and inputs and "image" not in inputs:
            raise UnsupportedError(
                f"the {engine.name} engine reads texts with '{engine.model_source}', which is no"
                " model that sees, and no images",
                param="image",
            )

    def ask(self, engine: LLMEngine, row: Row) -> Awaitable[Outcome]:
        return self.repair.answer(
            row.request, engine, _ASK, None if self.schema is None else self._read
        )

    async def _read(self, answer: Outcome) -> Outcome:
        """The answer with its fields, or with what is wrong with it."""
        assert self.schema is not None
        try:
            answer.parsed = await self.schema.read(answer.response or "")
        except ValueError as error:
            answer.error = invalid_json(str(error), answer.finish_reason, answer.usage)
        return answer

    def output(self, row: Row, outcome: Outcome) -> dict[str, Any]:
        values = dict(row.values) if row.values is not None else dict(self._blank)
        values.update(zip(self.result_columns, self.results(outcome), strict=True))
        return values

    def tables(self, source: Source) -> Tables:
        from penstock.batch.write.tables import ColumnTables

        return ColumnTables(self, source.schema, source.columns)

    def arrow_types(self) -> list[pa.DataType]:
        """The Arrow types of the result columns."""
        import pyarrow as pa

        from penstock.batch.write.tables import ERROR, USAGE, field_types

        fields = field_types(self.schema) if self.schema is not None else []
        text = pa.string()
        return [text, *fields, text, ERROR, text, USAGE, pa.int64(), pa.float64()]

    def results(self, outcome: Outcome) -> list[Any]:
        """The values of the result columns."""
        fields, end = outcome.parsed or {}, end_of(outcome)
        end.insert(2, outcome.finish_reason)
        return [outcome.response, *map(fields.get, self.fields), *end]

    def _conversation(
        self, values: Mapping[str, Any], images: Sequence[Sequence[str]] | None
    ) -> list[Message]:
        try:
            value = values[self._messages or ""]
        except KeyError:
            raise RequestError(
                f"the row has no column '{self._messages}'", param=self._messages
            ) from None
        if isinstance(value, str):
            try:
                value = decode_json(value)
            except ValueError:
                raise RequestError(
                    f"column '{self._messages}' holds text that is no JSON list of messages"
                ) from None
        elif not isinstance(value, list):
            row, _ = plain_row({"messages": value})  # an array or a tuple
            value = row["messages"]
        if not isinstance(value, list) or not value:
            raise RequestError(
                f"column '{self._messages}' holds no list of messages", param="messages"
            )
        messages: list[Message] = []
        for item in value:
            if not isinstance(item, dict) or not isinstance(item.get("role"), str):
                raise RequestError(
                    f"column '{self._messages}' holds a message without a role", param="messages"
                )
            # Columnar data gives every message every key; a null key was never there.
            messages.append({key: part for key, part in item.items() if part is not None})
        check_messages(messages)
        for message in messages:
            if isinstance(message.get("content"), list) and any(
                part["type"] not in ("text", *MEDIA_PARTS) for part in message["content"]
            ):
                raise RequestError(
                    f"column '{self._messages}' holds a message with other parts than texts,"
                    " images and videos"
                )
        if images is not None:
            messages = with_media(messages, images)
        return messages if messages[0]["role"] == "system" else self._system + messages


def check_task(engine: LLMEngine, task: str, lacks: str, needed: str) -> None:
    """Raise `UnsupportedError` if the engine has no such task. `lacks` says so in words."""
    if task not in engine.capabilities.tasks:
        raise UnsupportedError(
            f"the {engine.name} engine {lacks} with '{engine.model_source}': give {needed}",
            param="model",
        )


def end_of(outcome: Outcome) -> list[Any]:
    """The values of `END_COLUMNS` for a row with this outcome."""
    error, usage = outcome.error, outcome.usage
    tokens = usage and {  # `USAGE_FIELDS`, written out: every row of a job has them
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }
    return [
        "ok" if error is None else "error",
        None if error is None else {name: getattr(error, name) for name in ERROR_FIELDS},
        tokens,
        outcome.attempts,
        outcome.latency_ms,
    ]


def end_types() -> list[pa.DataType]:
    """The Arrow types of `END_COLUMNS`."""
    import pyarrow as pa

    from penstock.batch.write.tables import ERROR, USAGE

    return [pa.string(), ERROR, USAGE, pa.int64(), pa.float64()]


def conversation_text(messages: Sequence[Message]) -> str:
    """The contents of a conversation in order, so that conversations which begin alike sort
    together. An image or a video is represented by its name.
    """
    return "\n".join(
        [
            text if isinstance(text := message.get("content"), str) else _parts_text(text)
            for message in messages
        ]
    )


def _parts_text(content: Any) -> str:
    parts = content if isinstance(content, list) else ()
    if not any(isinstance(p, dict) and p.get("type") in MEDIA_PARTS for p in parts):
        return as_text(content)
    given = ((part.get("text"), given_in(part)) for part in parts)
    return " ".join(
        text if isinstance(text, str) else name_of(image) if isinstance(image, str) else ""
        for text, image in given
    )


class Template:
    """A prompt's template: text with `{column}` in it. `columns` are the columns that it uses, in
    order of their first use.

    Unlike `str.format` there are no attributes, indexes, conversions or format codes, so that a
    template from anywhere can only place a row's values. `{{` and `}}` stand for single braces.
    Raises `ConfigError`, which names the option `field`, for a lone brace or an empty field.
    """

    def __init__(self, source: str, field: str = "prompt") -> None:
        self._field = field
        self._parts: list[tuple[str, str | None]] = []  # literal text, then the column after it
        literal, end = "", 0
        for token in _TOKENS.finditer(source):
            literal += source[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}"):
                literal += token[0][0]
            elif token[1]:
                self._parts.append((literal, token[1]))
                literal = ""
            else:
                raise ConfigError(
                    f"'{token[0]}' at character {token.start() + 1} names no column",
                    field=field,
                    value=source,
                    hint=_DOUBLE,
                )
        self._parts.append((literal + source[end:], None))
        self.columns = tuple(dict.fromkeys(column for _, column in self._parts if column))

    def check(self, columns: Iterable[str], *, complete: bool = True) -> None:
        """Raise `ConfigError` if the data lacks a column of the template.

        If `columns` are not `complete`, this is raised only for text that cannot be a column's
        name.
        """
        known = list(columns)
        for column in self.columns:
            if column not in known and (complete or '"' in column):
                hint = _DOUBLE if _JSON_MARKS.intersection(column) else ""
                check_column(column, known, self._field, hint=hint)

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row. Raises `RequestError` if the row lacks a column."""
        pieces = []
        for literal, column in self._parts:
            pieces.append(literal)
            if column is not None:
                try:
                    value = values[column]
                except KeyError:
                    raise RequestError(f"the row has no column '{column}'", param=column) from None
                pieces.append(value if isinstance(value, str) else as_text(value))
        return "".join(pieces)

    def is_blank(self, values: Mapping[str, Any]) -> bool:
        """Whether all columns of the template are null or white space in a row."""
        found = [values[column] for column in self.columns]
        return bool(found) and all(
            value is None or (isinstance(value, str) and not value.strip()) for value in found
        )


def as_text(value: Any) -> str:
    """A value as text in a prompt: text unchanged, null as no text, numbers and dates in plain
    form, other values as JSON.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise RequestError("a prompt can hold no binary value") from None
    if is_pillow(value):
        raise RequestError("a prompt can hold no image")
    try:
        return plain_text(value) or ""
    except UnstorableError as error:
        raise RequestError(f"a prompt cannot hold it: {error}") from None
