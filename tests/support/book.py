"""The pages of the book: their blocks, and which kinds of these a test runs.

Kinds that nothing runs are `sh` (the text beside such a block says why), `text` and `toml`.
Configurations (`yaml`) are read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
# All blocks run, in one folder from top to bottom.
GUIDES = [
    "README.md",
    "docs/start.md",
    "docs/tutorial.md",
    *(page for page in PAGES if page.startswith("docs/howto/")),
]
# Each command runs by itself.
COMMANDS = [
    f"docs/{name}.md" for name in ("batch", "benchmarks", "decisions", "engines", "serving")
]
# Each program runs by itself: here, and beside a server.
PROGRAMS = ["CONTRIBUTING.md", "docs/batch.md", "docs/decisions.md", "docs/processors.md"]
ASKING = ["docs/batch-api.md", "docs/serving.md"]
CLIENTS = "docs/clients.md"  # tests/clients
FROM_RAY = ["docs/from-ray-data.md", "docs/from-ray-serve.md"]
ON_RAY = [*FROM_RAY, "docs/ray.md"]  # tests/ray/test_ray_pages.py
ENDPOINT = "docs/http.md"  # its program asks one

RUN: dict[str, set[str]] = {page: set() for page in PAGES}
for _pages, _kinds in (
    (GUIDES, {"bash", "output", "python", "serve"}),
    (COMMANDS, {"bash"}),
    ([*PROGRAMS, *ASKING, *ON_RAY, ENDPOINT], {"python"}),
    ([CLIENTS], {"bash", "js", "python"}),
    (["docs/ray.md"], {"bash"}),
    ([CLIENTS, "docs/serving.md"], {"serve"}),  # one serves the demo model for the others
):
    for _page in _pages:
        RUN[_page] |= _kinds


def text(page: str) -> str:
    """A whole page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    """Its blocks of a kind."""
    return [body for name, body in BLOCK.findall(text(page)) if name == kind]


def commands(page: str, program: str) -> Iterator[str]:
    """The calls of a program in its blocks of commands, each whole: what is indented goes on."""
    for block in blocks(page, "bash"):
        for command in re.split(r"\n(?=\S)", block.rstrip()):
            if command.startswith(f"{program} "):
                yield command


def run(
    argv: list[str], folder: Path, *, said: str = "", timeout: float = 300, **variables: str
) -> str:
    """What a command prints that runs in `folder` and reads `said`. It finds the programs of this
    environment first.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path, **variables},
        input=said,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
