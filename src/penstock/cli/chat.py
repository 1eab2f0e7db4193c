"""`penstock chat`: asks a server that runs."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.options import FiniteRange, WholeRange
from penstock.cli.process import interruptible
from penstock.cli.serve import DEFAULT_PORT
from penstock.errors import ConfigError, UpstreamError
from penstock.observability import say

if TYPE_CHECKING:
    from penstock.serve.client import Client

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"


@click.command(short_help="Chat with a served model in the terminal.")
@click.option(
    "--model",
    default="",
    help="The model to chat with.  [default: the first that the server lists]",
)
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Address of the server.")
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option("--temperature", type=FiniteRange(0, 2), help="[default: the server's]")
@click.option("--max-tokens", type=WholeRange(1), help="Most tokens of an answer.")
@click.option("--api-key", envvar="PENSTOCK_API_KEY", help="Also PENSTOCK_API_KEY.")
def chat(
    model: str,
    url: str,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    api_key: str | None,
) -> None:
    """Chat with a served model. Ctrl-C stops an answer, Ctrl-D or /quit ends, /new starts anew."""
    from penstock.serve.client import Client

    client = Client(url, api_key)
    if not model:
        cards = client.models()
        if not cards:
            raise ConfigError("the server has no models", field="--model")
        model = str(cards[0]["id"])
    say(f"{model} at {url}. /new starts afresh, /quit ends.")
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options = {key: value for key, value in given.items() if value is not None}
    opening: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # an invalid byte must not end the chat
    with interruptible():
        while (text := _ask()) is not None:
            if text == "/new":
                messages = list(opening)
            elif text:
                messages.append({"role": "user", "content": text})
                try:
                    answer = _say(client, model, messages, options)
                except UpstreamError as error:
                    if not _is_typed():
                        raise
                    del messages[-1]  # the conversation goes on without it
                    say(str(error))
                else:
                    messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        text = input("> " if _is_typed() else "").strip()
    except (EOFError, KeyboardInterrupt, RuntimeError):  # RuntimeError: standard input is closed
        return None
    return None if text == "/quit" else text


def _is_typed() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _say(
    client: Client, model: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> str:
    answer = ""
    try:
        for piece in client.chat(model, messages, **options):
            answer += piece
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        pass  # keep the answer so far
    click.echo()
    return answer
