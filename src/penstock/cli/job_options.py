"""Options of `penstock run` and `penstock plan` that make up the request for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]

_OPTIONS = (
    click.option(
        "--model", help="'demo', a model directory or file, or a hub id.  [default: demo]"
    ),
    click.option("--engine", help="The engine that runs the model.  [default: openvino]"),
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
    click.option(
        "--prompt", metavar="TEXT", help="The user's message, with {column} as placeholder."
    ),
    click.option("--messages", metavar="COLUMN", help="The column that holds whole conversations."),
    click.option("--system", metavar="TEXT", help="A system message before each prompt."),
    click.option(
        "--schema",
        metavar="FILE",
        help="A JSON Schema that answers follow; its fields become columns.",
    ),
    click.option(
        "--adapter",
        metavar="COLUMN_OR_NAME",
        help="A column of LoRA adapter names, or one name or directory.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        help="Most tokens of an answer.  [default: the rest of the context]",
    ),
    click.option(
        "--temperature", type=click.FloatRange(0), help="[default: 0, the likeliest token]"
    ),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True
    ),
    click.option(
        "--top-k", type=click.IntRange(0), default=0, help="0: all tokens.", show_default=True
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="Text that ends an answer before it; can be repeated.",
    ),
    click.option("--limit", type=click.IntRange(0), help="Read only this many rows."),
)


def what_is_asked(command: Command) -> Command:
    """Add these options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def json_object(text: str | None, field: str) -> dict[str, Any] | None:
    """The JSON object in an option; None for an absent option. Raises `ConfigError`."""
    if text is None:
        return None
    from penstock.errors import ConfigError
    from penstock.parsing.text import decode_json

    try:
        value = decode_json(text)
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", field=field, value=text) from None
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object", field=field, value=text)
    return value
