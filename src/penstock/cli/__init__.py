"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys

import click

import penstock
from penstock import env
from penstock.cli import demo, explain, plan, run, serve
from penstock.errors import PenstockError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(penstock.__version__, prog_name="penstock")
def cli() -> None:
    """Run large language models over data sets and serve them, on one shared engine."""


for command in (run.run, plan.plan, serve.serve, serve.chat, serve.models, explain.explain, demo.demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Errors raised on purpose are told on one line; PENSTOCK_DEBUG=1 shows where they arose."""
    debug = False
    try:
        debug = env.debug()
        cli.main(prog_name="penstock", standalone_mode=False)
    except click.exceptions.Exit as done:
        raise SystemExit(done.exit_code) from None
    except click.UsageError as error:
        from penstock.cli.usage_errors import usage_fault

        if error.ctx is not None and len(sys.argv) == 1:
            _say(error.ctx.get_help())
        else:
            usage = f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help'.\n\n" if error.ctx else ""
            _say(f"{usage}penstock: {usage_fault(error)}")
        raise SystemExit(error.exit_code) from None
    except PenstockError as error:
        if debug:
            raise
        _say(f"penstock: {error}")
        raise SystemExit(2 if error.status < 500 else 1) from None  # 4xx: what was asked for is wrong
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would kill the interpreter on its way to this exit code
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        _say(
            f"penstock: {type(error).__name__}: {error}\n"
            "This is a fault in penstock itself; PENSTOCK_DEBUG=1 shows where it arose."
        )
        raise SystemExit(1) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)
