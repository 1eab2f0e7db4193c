"""Manual pages from the commands' help: `python -m penstock.cli.manual FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

import penstock
from penstock.cli.commands import cli


def pages(command: click.Command, name: str = "penstock") -> Iterator[tuple[str, str]]:
    """The name and the roff text of the page of a command, and of all commands below it."""
    context = click.Context(command, info_name=name.replace("-", " "), max_content_width=78)
    yield name, _page(command, context, name)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            yield from pages(command.commands[below], f"{name}-{below}")


def _page(command: click.Command, context: click.Context, name: str) -> str:
    summary = command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH {name.upper()} 1 "" "Penstock {penstock.__version__}"',
        ".SH NAME",
        f"{name} \\- {_escaped(summary)}",
        ".SH DESCRIPTION",
        ".nf",  # the help is laid out already
        *map(_escaped, command.get_help(context).splitlines()),
        ".fi",
    ]
    return "\n".join(lines) + "\n"


def _escaped(line: str) -> str:
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def main(folder: str) -> None:
    """Write a page for each command into a folder, which is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in pages(cli):
        Path(folder, f"{name}.1").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m penstock.cli.manual FOLDER")
    main(sys.argv[1])
