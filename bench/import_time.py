"""What importing Penstock costs: time, and modules of others."""

from __future__ import annotations

import json
import sys

import harness
from harness import PENSTOCK, Bar, Contestant

HEAVY = (
    "aiohttp",
    "fastapi",
    "jinja2",
    "jsonschema_rs",
    "nixl",
    "numpy",
    "openvino",
    "openvino_genai",
    "optimum",
    "pandas",
    "polars",
    "pyarrow",
    "ray",
    "sglang",
    "starlette",
    "torch",
    "tqdm",
    "transformers",
    "uvicorn",
    "vllm",
)
"""Packages that no light name may load."""

EVERY_LIGHT_NAME = "import penstock; [getattr(penstock, name) for name in penstock.__all__]"
"""Code that fetches each public name of the package, and uses none."""

EVERY_SERVING_NAME = "from penstock.serve import *"
"""What a configuration file, an ingress of one's own or a Ray Serve file needs."""


def modules_added(code: str) -> set[str]:
    """The top-level modules that running `code` adds to a fresh interpreter, Penstock's own left
    out.
    """
    probe = (
        f"import sys; before = set(sys.modules); exec({code!r}); added = set(sys.modules) - before;"
        " import json; print(json.dumps(sorted({name.partition('.')[0] for name in added} -"
        " {'penstock'})))"
    )
    return set(json.loads(harness.command([sys.executable, "-c", probe]).output))


def third_party(modules: set[str]) -> set[str]:
    """Those of the modules that do not come with Python."""
    return modules - sys.stdlib_module_names


def main() -> int:
    """Measure, print, and return the exit code."""
    args = harness.parser(__doc__, rounds=15).parse_args()

    def python(code: str) -> Contestant:
        return Contestant(
            code, lambda: 1000 * harness.command([sys.executable, "-c", code]).seconds
        )

    imports = harness.compare(
        "import",
        "ms",
        [python("pass"), python("import penstock"), python(EVERY_SERVING_NAME)],
        args.rounds,
    )
    command_line = harness.compare(
        "command line",
        "ms",
        [
            python("import click"),
            Contestant(
                "penstock --help", lambda: 1000 * harness.command([PENSTOCK, "--help"]).seconds
            ),
        ],
        args.rounds,
    )
    foreign = third_party(modules_added("import penstock"))
    serving = modules_added(EVERY_SERVING_NAME) & (set(HEAVY) - {"starlette"})
    heavy = modules_added(EVERY_LIGHT_NAME) & set(HEAVY)
    bars = [
        Bar("import penstock adds, ms", imports.difference("import penstock", "pass").median, 30),
        Bar(f"third-party modules that import penstock loads {sorted(foreign)}", len(foreign), 0),
        Bar(
            "every name of penstock.serve adds, ms",
            imports.difference(EVERY_SERVING_NAME, "pass").median,
            400,
        ),
        Bar(f"heavy packages that they load {sorted(serving)}", len(serving), 0),
        Bar("penstock --help, ms", command_line["penstock --help"].median, 250),
        Bar(f"heavy packages that every light name loads {sorted(heavy)}", len(heavy), 0),
    ]
    return harness.finish(args, [imports, command_line], bars, packages=["click"])


if __name__ == "__main__":
    sys.exit(main())
