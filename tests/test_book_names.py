"""What the book names is there: options, files and names of Python."""

import re
from functools import cache

import pytest

import book
from penstock.cli.commands import cli

FOLDERS = ("bench", "deploy", "docs", "examples", "scripts", "src", "tests", "tools")
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w-]+(/[\w-]+)*/?[\w.-]*\.(py|sh|md|yaml|toml)|[\w-]+(/[\w-]+)+/")
# Of SGLang's server, docker, Ray and SQLite, and a stand-in for any.
OF_OTHERS = {
    *("--build-arg", "--enable-cache-report", "--enable-deterministic-inference"),
    *("--csv", "--flags", "--num-cpus"),
}
# Files of users and of models, and names that stand for any.
NOT_HERE = re.compile(
    r"[A-Z]{3}|penstock-demo/|1_Pooling|onnx/|^(config|pair|questions|serve|tickets|utils|llama)\."
)


@cache
def files():
    """The text of each file of the repository, by its path."""
    found = {}
    for folder in FOLDERS:
        for path in (book.ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".sh", ".md", ".yaml", ".toml", ".txt", ".mjs"}:
                name = str(path.relative_to(book.ROOT))
                found[name] = path.read_text(encoding="utf-8")
    return found


@cache
def options():
    """The options of all commands."""
    found, left = {"--help"}, [cli]
    for command in left:  # it grows
        left += getattr(command, "commands", {}).values()
        for option in command.params:
            found |= {*option.opts, *option.secondary_opts}
    return found


@cache
def used(option):
    """Whether a program, a test or a list of pins has it."""
    ends = (".py", ".sh", ".txt", ".mjs")
    return any(option in text for name, text in files().items() if name.endswith(ends))


def spans(page):
    return SPAN.findall(book.text(page))


@pytest.mark.parametrize("page", book.PAGES)
def test_options(page):
    for span in spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span):
            ours = span.startswith("penstock ") and "vllm" not in span
            known = option in options() or (not ours and used(option))
            assert known or option in OF_OTHERS, f"{page}: there is no {option} ({span})"


@pytest.mark.parametrize("page", book.PAGES)
def test_files(page):
    for span in spans(page):
        if PATH.fullmatch(span) and not NOT_HERE.search(span):
            end = f"/{span}"
            assert (
                any(
                    f"/{name}".endswith(end) or (span.endswith("/") and end in f"/{name}")
                    for name in files()
                )
                or (book.ROOT / span).exists()
            ), f"{page}: there is no {span}"


@pytest.mark.parametrize("page", [page for page in book.PAGES if page != "CHANGELOG.md"])
def test_names(page):
    for span in spans(page):
        for name in re.findall(r"\bpenstock(?:\.[A-Za-z_]\w*)+", span):
            parts = name.split(".")
            modules = [
                text
                for count in range(len(parts), 0, -1)
                for end in (".py", "/__init__.py")
                if (text := files().get(f"src/{'/'.join(parts[:count])}{end}")) is not None
                and all(re.search(rf"\b{one}\b", text) for one in parts[count:])
            ]
            assert modules, f"{page}: there is no {name}"


def test_variables_of_the_environment():
    read = set(re.findall(r'"([A-Z][A-Z_]{8,}[A-Z])"', files()["src/penstock/env.py"]))
    assert read
    assert read <= {*re.findall(r"[A-Z][A-Z_]+", book.text("docs/reference/environment.md"))}
