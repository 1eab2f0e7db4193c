"""`penstock models`: the models of a running server, and those on this machine's disk."""

from __future__ import annotations

from datetime import datetime

import click
from click.core import ParameterSource

from penstock.cli.chat import DEFAULT_URL
from penstock.cli.process import DECIMAL, plain_table, size
from penstock.errors import ConfigError
from penstock.observability import counted, say


@click.group(invoke_without_command=True, short_help="Models of a server, and on disk.")
@click.option("--url", default=DEFAULT_URL, show_default=True, help="Address of the server.")
@click.option("--api-key", envvar="PENSTOCK_API_KEY", help="Also PENSTOCK_API_KEY.")
@click.pass_context
def models(context: click.Context, url: str, api_key: str | None) -> None:
    """List the models and adapters of a server, and what each is doing.

    The commands below are about models on this machine's disk.
    """
    if context.invoked_subcommand is not None:
        for name in ("url", "api_key"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise _of_a_server(name)
        return
    from penstock.serve.client import Client

    rows = [["MODEL", "STATE", "CONTEXT", "ENGINE", "REASON"]]
    for card in Client(url, api_key).models():
        cells = (card.get(key) for key in ("id", "state", "max_model_len", "engine", "reason"))
        rows.append(["-" if cell is None else str(cell) for cell in cells])
    click.echo(plain_table(rows))


@models.command(short_help="Fetch a model from a hub.")
@click.argument("name", metavar="ID")
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Files to fetch; can be repeated.  [default: what an engine needs]",
)
def pull(name: str, include: tuple[str, ...]) -> None:
    """Fetch a model from Hugging Face's hub, or that of HF_ENDPOINT. ID is ORG/NAME, or
    ORG/NAME@REVISION.

    What was fetched before is kept, and what was cut off is continued. Each file is compared with
    the hub's checksum.
    """
    from penstock.engines.disk.cache import pull as fetch

    model = fetch(name, include, lambda line: say(f"fetching {name}: {line}"))
    click.echo(f"{model.name}: {size(model.nbytes, DECIMAL)} in {model.path}")


@models.command(short_help="Convert a Hugging Face model for the embedded engine.")
@click.argument("source", metavar="MODEL")
@click.option(
    "--task",
    type=click.Choice(["generate", "embed", "score", "transcribe", "speak"]),
    help="What the model does.  [default: what its files say]",
)
@click.option(
    "--weight-format",
    type=click.Choice(["auto", "fp32", "fp16", "int8", "int4"]),
    default="auto",
    show_default=True,
    help="Precision of the weights; auto is int8 from a billion parameters on.",
)
@click.option(
    "--conversion", metavar="JSON", help='Options of the exporter: \'{"awq": true, "ratio": 0.8}\'.'
)
def convert(source: str, task: str | None, weight_format: str, conversion: str | None) -> None:
    """Convert a model in Hugging Face's form (a directory, or ORG/NAME) now, rather than at its
    first start, and print where the result is.

    `penstock run` and `penstock serve` find it if they are given the same MODEL, and the same
    options as `weight_format` and `conversion` of the engine. What was converted before is kept.

    \b
    Examples:
      penstock models convert ./llama --weight-format int4 --conversion '{"awq": true}'
      penstock serve "$(penstock models convert ./llama --weight-format int8)"
    """
    from penstock.cli.options import json_object
    from penstock.config import parse_options
    from penstock.engines.openvino.model.source import find_model
    from penstock.engines.openvino.options import OpenVINOOptions

    given = {
        "task": task,
        "weight_format": weight_format if weight_format != "auto" else None,
        "conversion": json_object(conversion, "--conversion") or {},
    }
    options = parse_options(OpenVINOOptions, given, "engine_kwargs")
    files = find_model(source, options.task, None, options.weight_format, options.conversion)
    click.echo(files.path)


@models.command("list", short_help="Models on disk, with their sizes.")
@click.option("--url", hidden=True)
def list_models(url: str | None) -> None:
    """List the models on this machine's disk: from a hub, converted, or copied from a bucket."""
    if url is not None:
        raise _of_a_server("url")
    from penstock.engines.disk.cache import cached_models

    found = cached_models()
    rows = [["MODEL", "KIND", "SIZE", "CHANGED"]]
    for model in found:
        changed = datetime.fromtimestamp(model.changed).strftime("%Y-%m-%d %H:%M")
        rows.append([model.name, model.kind, size(model.nbytes, DECIMAL), changed])
    click.echo(plain_table(rows))
    say(f"{counted(len(found), 'model')}, {size(sum(model.nbytes for model in found), DECIMAL)}")


@models.command(short_help="Where a model is, and its files.")
@click.argument("name", metavar="MODEL")
def show(name: str) -> None:
    """Show where a model on disk is, and its files with their sizes."""
    from penstock.engines.disk.cache import cached_model

    model = cached_model(name)
    click.echo(f"{model.name} ({model.kind}), {size(model.nbytes, DECIMAL)}, in {model.path}")
    click.echo(plain_table([["FILE", "SIZE"], *([a, size(b, DECIMAL)] for a, b in model.files())]))


@models.command(short_help="Remove models from disk.")
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove models from this machine's disk. They are fetched or converted again when needed."""
    from penstock.engines.disk.cache import cached_model, remove_model

    for model in [cached_model(name) for name in names]:  # all are there before any goes
        remove_model(model)
        click.echo(f"removed {model.name}: {size(model.nbytes, DECIMAL)}")


def _of_a_server(option: str) -> ConfigError:
    return ConfigError(
        "the commands are about models on disk",
        field=f"--{option.replace('_', '-')}",
        hint="A server's are listed without a command: penstock models --url URL.",
    )
