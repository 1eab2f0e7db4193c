"""Puts the promises of docs/reliability.md to the test, for about twenty minutes, and prints what
held.

    python tools/campaign/run.py --minutes 20 --seed 1 --write docs/reliability.md

Seeded and bounded: everything runs on this machine, on loopback, in a temporary folder. Exit code 1
if a promise was broken; what was seen then stands below the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import bombs
import disconnects
import fatal
import files
import kills
import mutations
import random_requests
from promises import Promise, table

CAMPAIGNS: dict[str, tuple[Callable[[int, float, Path], list[Promise]], float]] = {
    "kills": (kills.campaign, 0.3),
    "mutations": (mutations.campaign, 0.15),
    "fatal": (fatal.campaign, 0.1),
    "files": (files.campaign, 0.1),
    "requests": (random_requests.campaign, 0.15),
    "disconnects": (disconnects.campaign, 0.1),
    "bombs": (bombs.campaign, 0.1),
}
"""Each with its share of the time."""
_BEGIN, _END = "<!-- campaign -->\n", "<!-- end of campaign -->\n"


def main() -> int:
    """Run the campaigns in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for all of them together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", choices=CAMPAIGNS, help="these alone, with their share of the minutes"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the table into this document"
    )
    args = parser.parse_args()
    promises: list[Promise] = []
    with tempfile.TemporaryDirectory(prefix="penstock-campaign-") as home:
        for name in args.only or CAMPAIGNS:
            campaign, share = CAMPAIGNS[name]
            folder = Path(home, name)
            folder.mkdir()
            print(f"{name} …", file=sys.stderr, flush=True)
            promises += campaign(args.seed, time.monotonic() + args.minutes * 60 * share, folder)
    about = f"Seed {args.seed}, {args.minutes:g} minutes, {date.today()}, {_machine()}."
    text = f"{about}\n\n{table(promises)}\n"
    print(text)
    if args.write is not None:
        _write(args.write, text)
    for promise in promises:
        for what in promise.broken[:10]:
            print(f"BROKEN: {promise.says}: {what}", file=sys.stderr)
    return int(any(promise.broken or not promise.tried for promise in promises))


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, Python {platform.python_version()}"


def _write(path: Path, text: str) -> None:
    document = path.read_text()
    begin, end = document.index(_BEGIN) + len(_BEGIN), document.index(_END)
    path.write_text(document[:begin] + "\n" + text + "\n" + document[end:])


if __name__ == "__main__":
    sys.exit(main())
