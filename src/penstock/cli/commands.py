"""The commands as one group, and the fault of a wrong command line. A command imports its modules
when it runs, so `--help` is fast.
"""

from __future__ import annotations

from typing import Any

import click

import penstock
from penstock import env
from penstock.cli import bench, chat, demo, evaluate, explain, jobs, models, run, serve
from penstock.cli.options import TooLargeError
from penstock.observability import say


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(penstock.__version__, prog_name="penstock")
def cli() -> None:
    """Run large language models over data sets and serve them, on one shared engine."""
    for name, near in env.misspelt():
        say(f"Warning: the variable {name} is not known. Did you mean {near}?")


for command in (
    *(run.run, run.plan, jobs.jobs, serve.serve, chat.chat, models.models),
    *(bench.bench, evaluate.calibrate, evaluate.evaluate, explain.explain, demo.demo),
):
    cli.add_command(command)


_WAYS_OUT = {
    "serve": ": one MODEL; several models go into a configuration file, CONFIG.yaml",
    "run": ": one INPUT; several files go into a glob in quotes, or a directory",
    "plan": ": one INPUT; several files go into a glob in quotes, or a directory",
}
"""What to do instead of one more argument."""


def usage_fault(error: click.UsageError) -> str:
    """One line: the wrong option or argument, and what it must be. The words are ours: click's
    change with its versions.
    """
    if isinstance(error, click.NoSuchOption):
        from difflib import get_close_matches  # imported only for an error

        found = get_close_matches(error.option_name, error.possibilities or (), n=2, cutoff=0.0)
        near = f". Did you mean {' or '.join(found)}?" if found else ""
        return f"there is no option {error.option_name}{near}"
    if isinstance(error, click.MissingParameter):
        return f"{_name(error)} is missing"
    if isinstance(error, TooLargeError):
        return f"{_name(error)} {error.message}"
    if isinstance(error, click.BadParameter):
        kind = getattr(error.param, "type", None)
        return (
            f"{_name(error)} must be {_kind(kind)}"
            if kind is not None
            else f"{_name(error)} is wrong"
        )
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name} needs a value, or takes none and was given one"
    if error.ctx is not None and isinstance(error.ctx.command, click.Group):
        return (
            f"there is no such command; there are {', '.join(sorted(error.ctx.command.commands))}"
        )
    command = "" if error.ctx is None else error.ctx.info_name or ""
    return f"there are more arguments than the command takes{_WAYS_OUT.get(command, '')}"


def _name(error: click.BadParameter) -> str:
    if isinstance(error.param, click.Option):
        return max(error.param.opts, key=len)
    return getattr(error.param, "metavar", None) or "an argument"


def _kind(kind: Any) -> str:
    if isinstance(kind, click.Choice):
        words = [repr(word) for word in kind.choices]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if isinstance(kind, click.IntRange | click.FloatRange):
        number = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        least = (
            f"{'more than' if kind.min_open else 'at least'} {kind.min}"
            if kind.min is not None
            else ""
        )
        most = (
            f"{'less than' if kind.max_open else 'at most'} {kind.max}"
            if kind.max is not None
            else ""
        )
        return " and ".join(filter(None, [f"{number}, {least}" if least else number, most]))
    if isinstance(kind, click.Path):
        return "the path of a file" if kind.file_okay else "the path of a directory"
    return {"integer": "a whole number", "float": "a number"}.get(str(kind.name), "of another kind")
