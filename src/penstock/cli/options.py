"""Options that several commands share: of the model, of what each row asks, and of what becomes of
the answers; and checks of their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from penstock.errors import ConfigError

Command = Callable[..., Any]


_MOST_NUMBER = 1e9
"""Of what has no bound of its own: times in seconds or days and sizes in MiB stay computable."""
_MOST_WHOLE = 10**15


class TooLargeError(click.BadParameter):
    """A number is beyond `most`."""

    def __init__(self, most: float, param: Any, ctx: Any) -> None:
        super().__init__(f"must be at most {most:,.0f}", ctx, param)


class FiniteRange(click.FloatRange):
    """A range of numbers up to 10^9, without NaN, which is within any bounds."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("not a number", param, ctx)
        if number > _MOST_NUMBER:
            raise TooLargeError(_MOST_NUMBER, param, ctx)
        return number


class WholeRange(click.IntRange):
    """A range of whole numbers up to 10^15."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if number > _MOST_WHOLE:
            raise TooLargeError(_MOST_WHOLE, param, ctx)
        return number


_LOADED = (
    click.option(
        "--model", help="'demo', a model directory or file, or a hub id.  [default: demo]"
    ),
    click.option(
        "--engine",
        help=(
            "The engine that runs the model; openai-batch and anthropic-batch are those providers'"
            " batch APIs.  [default: openvino]"
        ),
    ),
    click.option(
        "--engine-kwargs", metavar="JSON", help="Options of the engine, as a JSON object."
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help=(
            "The same row gets the same answer whatever runs beside it, also in a resumed job."
            " Costs speed."
        ),
    ),
)
_INPUT = (
    click.option(
        "--prompt", metavar="TEXT", help="The user's message, with {column} as placeholder."
    ),
    click.option("--messages", metavar="COLUMN", help="The column that holds whole conversations."),
    click.option("--system", metavar="TEXT", help="A system message before each prompt."),
    click.option(
        "--adapter",
        metavar="COLUMN_OR_NAME",
        help="A column of LoRA adapter names, or one name or directory.",
    ),
    click.option(
        "--decide",
        metavar="FILE",
        help=(
            "Questions (YAML or JSON) about each prompt; each becomes the columns NAME and"
            " NAME_probabilities."
        ),
    ),
    click.option(
        "--choices",
        metavar="A,B,C",
        help="Which of these fits each prompt best: the columns choice and choice_probabilities.",
    ),
    click.option("--limit", type=WholeRange(0), help="Read only this many rows."),
)
_ANSWERED = (
    click.option(
        "--embed",
        metavar="COLUMN",
        help=(
            "The column of texts that become vectors, or text with {column} in it: the column"
            " embedding."
        ),
    ),
    click.option(
        "--dimensions",
        type=WholeRange(1),
        help="Numbers of a vector.  [default: the model's own]",
    ),
    click.option(
        "--input-type",
        type=click.Choice(["query", "document"]),
        help="Put the model's instruction for queries or documents before each text.",
    ),
    click.option(
        "--vector-type",
        type=click.Choice(["float32", "float16", "int8"]),
        help="Type of a vector's numbers.  [default: float32]",
    ),
    click.option(
        "--vectors",
        type=click.Choice(["dense", "multi", "sparse"]),
        help=(
            "One vector a text, one a token (late interaction), or indices and values (SPLADE)."
            "  [default: dense]"
        ),
    ),
    click.option(
        "--audio",
        metavar="COLUMN",
        help=(
            "The column of recordings that become text: bytes or paths. Of an INPUT of audio"
            " files: path."
        ),
    ),
    click.option("--language", metavar="CODE", help="That of all recordings.  [default: detected]"),
    click.option("--translate", is_flag=True, help="Recordings become English text."),
    click.option("--timestamps", is_flag=True, help="One more column, segments, with their times."),
    click.option("--hotwords", metavar="TEXT", help="Words to expect in recordings."),
    click.option(
        "--speak",
        metavar="COLUMN",
        help=(
            "The column of texts that are spoken into files of --audio-dir, or text with {column}."
        ),
    ),
    click.option("--voice", metavar="NAME", help="Who speaks.  [default: the model's own voice]"),
    click.option(
        "--audio-format",
        type=click.Choice(["wav", "mp3", "opus", "flac", "aac"]),
        help="Form of spoken files.  [default: wav]",
    ),
    click.option("--audio-dir", metavar="DIR", help="Where spoken files go."),
    click.option(
        "--attach",
        metavar="URL",
        help=(
            "A running server, whose engine does the work beside its other users; the key is"
            " PENSTOCK_API_KEY."
        ),
    ),
    click.option(
        "--image",
        metavar="COLUMN",
        help=(
            "A column of images before each prompt, or text to embed: bytes, paths or data URIs,"
            " PDFs too; before a prompt, videos too."
        ),
    ),
    click.option(
        "--filter",
        metavar="QUESTION",
        help="Keep the rows to whose prompt the answer is yes.",
    ),
    click.option(
        "--threshold",
        type=FiniteRange(0, 1),
        help="The least probability of yes of a row that is kept.  [default: 0.5]",
    ),
    click.option(
        "--cascade",
        metavar="LARGE_MODEL",
        help="Decisions and answers by a schema that --model is unsure of come from this one.",
    ),
    click.option(
        "--target-accuracy",
        type=FiniteRange(0, 1),
        help=(
            "Of a cascade: the share of rows that get the large model's decision.  [default: 0.95]"
        ),
    ),
    click.option(
        "--delta",
        type=FiniteRange(0, 1),
        help="Of a cascade: the risk that the target is missed.  [default: 0.05]",
    ),
    click.option(
        "--schema",
        metavar="FILE",
        help="A JSON Schema that answers follow; its fields become columns.",
    ),
    click.option(
        "--max-tokens",
        type=WholeRange(1),
        help="Most tokens of an answer.  [default: the rest of the context]",
    ),
    click.option("--temperature", type=FiniteRange(0), help="[default: 0, the likeliest token]"),
    click.option("--top-p", type=FiniteRange(0, 1, min_open=True), default=1.0, show_default=True),
    click.option(
        "--top-k", type=WholeRange(0), default=0, help="0: all tokens.", show_default=True
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="Text that ends an answer before it; can be repeated.",
    ),
)


_KEPT = (
    click.option(
        "--on-length",
        default="keep",
        metavar="ACTION",
        help=(
            "'raise': ask again with twice the tokens for an answer that was cut off; 'truncate':"
            " shorten a prompt or a text to embed that is too long; 'raise,truncate': both. "
            " [default: keep]"
        ),
    ),
    click.option(
        "--on-invalid-json",
        type=click.Choice(["keep", "retry"]),
        default="keep",
        show_default=True,
        help="Whether an answer that breaks the schema is kept or tried again.",
    ),
    click.option(
        "--dead-letter",
        metavar="PATH",
        help="A .jsonl file for the rows that failed, in place of the output.",
    ),
    click.option(
        "--retry-failed", is_flag=True, help="Run the error rows of an earlier run again."
    ),
    click.option(
        "--incremental",
        is_flag=True,
        help=(
            "The input has grown or changed: run only new and changed rows, keep the answers to the"
            " others. For the first run too."
        ),
    ),
    click.option(
        "--key", metavar="COLUMN", help="Of --incremental: the column that tells rows apart."
    ),
)
"""Options for poor answers and for the answers of an earlier run; `plan` has them too."""


def what_is_loaded(command: Command) -> Command:
    """Add the options of the model and its engine to a command."""
    return with_options(_LOADED, command)


def what_is_input(command: Command) -> Command:
    """Add the options of what each row is made into, and of questions about it."""
    return with_options(_INPUT, command)


def what_is_asked(command: Command) -> Command:
    """Add all options of what is asked, and of how it is answered."""
    return with_options((*_LOADED, *_INPUT, *_ANSWERED), command)


def what_is_kept(command: Command) -> Command:
    """Add the options for poor answers, and for the answers of an earlier run."""
    return with_options(_KEPT, command)


def with_options(options: tuple[Command, ...], command: Command) -> Command:
    """Add options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def json_object(text: str | None, field: str) -> dict[str, Any] | None:
    """The JSON object in an option; None for an absent option. Raises `ConfigError`."""
    if text is None:
        return None
    from penstock.parsing import decode_json

    try:
        value = decode_json(text)
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", field=field, value=text) from None
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object", field=field, value=text)
    return value


def check_places(*, json: str | None = None, **places: str | None) -> None:
    """Raise `ConfigError` now for a file that could not be written after all the work, by the names
    of options; a `picture` must be an SVG file by its name. "-" is standard output as `json`.
    """
    from penstock.batch.write.places import check_place

    for field, path in {"json": None if json == "-" else json, **places}.items():
        if path is not None:
            check_place(path, field)
    picture = places.get("picture")
    if picture is not None and not picture.lower().endswith(".svg"):
        raise ConfigError(
            "is drawn as SVG, so its name must end in .svg", field="picture", value=picture
        )
