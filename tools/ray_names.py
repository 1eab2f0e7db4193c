"""Holds Ray's public names for language models against Penstock's.

    .venv-ray/bin/python tools/ray_names.py

reads the names of the installed Ray with their parameters, fields and methods into
tests/compat/ray_names.json, and writes the tables in docs/from-ray-data.md and
docs/from-ray-serve.md. Signatures are compared; what no comparison can tell stands in
tools/ray_verdicts.toml, which takes precedence. vLLM need not be installed: a stand-in takes its
place, and Ray's classes lack what they inherit from it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import sys
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).parents[1]
NAMES = ROOT / "tests" / "compat" / "ray_names.json"
VERDICTS = ROOT / "tools" / "ray_verdicts.toml"
BEGIN, END = "<!-- made by tools/ray_names.py -->", "<!-- end of what it makes -->"
CALLBACKS = "ray.llm._internal.common.callbacks.base"
"""Private, and what Ray's pages import."""
SGLANG = "ray.llm._internal.serve.engines.sglang"
"""Private, and what Ray's example of SGLang imports."""
DATA = "ray.data.llm"
MODULES = {
    DATA: ("penstock.compat.ray",),
    "ray.serve.llm": ("penstock.compat.ray",),
    "ray.serve.llm.deployment": ("penstock.serve.deployment", "penstock.serve"),
    "ray.serve.llm.ingress": ("penstock.serve.ingress", "penstock.serve"),
    "ray.serve.llm.openai_api_models": ("penstock.serve.openai_api_models",),
    "ray.serve.llm.request_router": ("penstock.serve.request_router",),
    CALLBACKS: ("penstock.serve.callbacks", "penstock.serve"),
    SGLANG: ("penstock.serve.deployment",),
}
"""Ray's modules, and ours that have their names, in the order they are searched."""
PAGES = {
    ROOT / "docs" / "from-ray-data.md": [DATA],
    ROOT / "docs" / "from-ray-serve.md": [module for module in MODULES if module != DATA],
}
"""The pages, and the modules whose names each has."""
OWN = ("ray.data.llm", "ray.serve.llm", "ray.llm.")
PLAIN = (type(None), bool, int, float, str)


class Verdict(NamedTuple):
    """`word`: same, differs, refused or missing; `why` is empty for the same."""

    word: str
    why: str = ""


# Ray's side
def read_ray() -> dict[str, Any]:
    """Ray's version, and by module and name what each is."""
    if importlib.util.find_spec("vllm") is None:
        sys.meta_path.insert(0, StandIn())
    ray = importlib.import_module("ray")
    modules: dict[str, Any] = {}
    for module in MODULES:
        loaded = importlib.import_module(module)
        names = getattr(loaded, "__all__", None) or [
            name
            for name, value in vars(loaded).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module
        ]
        modules[module] = {name: described(getattr(loaded, name)) for name in sorted(names)}
    return {"ray": ray.__version__, "modules": modules}


def described(thing: Any) -> dict[str, Any]:
    """What a name is: its parameters, or its fields with their defaults and its methods."""
    if not isinstance(thing, type):
        return {"parameters": parameters(thing)}
    fields = getattr(thing, "model_fields", {})
    about: dict[str, Any] = {}
    if fields:
        about["fields"] = {name: default_of(fields[name]) for name in sorted(fields)}
    else:
        about["parameters"] = parameters(thing)
    methods = {}
    checks = getattr(thing, "__pydantic_decorators__", None)
    hidden = {"Config"}
    for kind in ("field_validators", "model_validators", "root_validators", "validators"):
        hidden |= set(getattr(checks, kind, ()))
    for name in sorted(set(dir(thing)) - hidden):
        found = inspect.getattr_static(thing, name)
        plain = getattr(found, "__func__", getattr(found, "fget", found))
        home = getattr(plain, "__module__", None) or ""
        if not name.startswith("_") and home.startswith(OWN) and callable(plain):
            methods[name] = None if isinstance(found, property) else parameters(plain)
    about["methods"] = methods
    return about


def default_of(field: Any) -> Any:
    """A field's default if it is a plain value; "…" where there is another or none."""
    return field.default if isinstance(field.default, PLAIN) else "…"


def parameters(function: Any) -> list[str]:
    """The names of the parameters, with `=` after one that has a default."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        stars.get(one.kind, "") + one.name + ("=" if one.default is not one.empty else "")
        for one in found
        if one.name not in ("self", "cls")
    ]


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports any module of vLLM, in which any name is an empty class."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        class Empty(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


# Ours
def ours_of(module: str, name: str) -> Any:
    """What Penstock has of that name; None where it has nothing."""
    for home in MODULES[module]:
        try:
            return getattr(importlib.import_module(home), name)
        except (ImportError, AttributeError):
            continue
    return None


def compared(about: Mapping[str, Any], ours: Any) -> Verdict:
    """How our function or class takes what Ray's takes."""
    if "fields" in about or not about.get("parameters"):
        return Verdict("same")
    # Of a class whose calls are awaited, the signature is that of its metaclass.
    why = unlike(about["parameters"], ours.__init__ if isinstance(ours, type) else ours)
    return Verdict("differs", why) if why else Verdict("same")


def unlike(wanted: list[str], function: Any) -> str:
    """What of a call of Ray's ours does not take; empty if it takes each."""
    known = parameters(function)
    theirs = [one.rstrip("=") for one in wanted if "*" not in one]
    ours = [one.rstrip("=") for one in known if "*" not in one]
    needed = {one for one in known if one[-1] != "=" and "*" not in one} - set(wanted)
    lacking = [one for one in theirs if one not in ours]
    if lacking and not any(one.startswith("**") for one in known):
        return f"takes no {listed(lacking)}"
    if needed:
        return f"needs {listed(sorted(needed))}"
    placed = positional(function)
    if theirs[: len(placed)] != placed[: len(theirs)] and not any("*" in one for one in known):
        return f"takes {listed(placed)} in this order"
    return ""


def listed(names: Iterable[str]) -> str:
    """Names as they are written in the table."""
    return ", ".join(f"`{name}`" for name in names)


def positional(function: Any) -> list[str]:
    """The names of the parameters that need not be named."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in found if one.kind in kinds and one.name not in ("self", "cls")]


def members(about: Mapping[str, Any], ours: Any) -> Iterator[tuple[str, Verdict]]:
    """The verdict on each field and method of a class."""
    missing = Verdict("missing", "not there")
    for name, default in about.get("fields", {}).items():
        known = our_fields(ours)
        if name not in known and not hasattr(ours, name):
            yield name, missing
        elif name in known and isinstance(default, PLAIN) and default != "…":
            here = known[name]
            same = here == default or not isinstance(here, PLAIN)
            why = f"default {default!r} there, {here!r} here"
            yield name, Verdict("same") if same else Verdict("differs", why)
        else:
            yield name, Verdict("same")
    for name, wanted in about.get("methods", {}).items():
        found = getattr(ours, name, None)
        if name in our_fields(ours):
            yield name, Verdict("same")
        elif found is None:
            yield name, missing
        elif wanted is None or not callable(found):
            yield name, Verdict("same")
        elif why := unlike(wanted, found):
            yield name, Verdict("differs", why)
        else:
            yield name, Verdict("same")


def our_fields(ours: Any) -> dict[str, Any]:
    """The fields of a class of ours with their defaults, "…" where there is none."""
    if isinstance(ours, type) and issubclass(ours, msgspec.Struct):
        return {one.name: one.default for one in msgspec.structs.fields(ours)}
    known = getattr(ours, "model_fields", {})
    return {name: default_of(one) for name, one in known.items()}


# The tables
def tables(names: Mapping[str, Any]) -> dict[Path, str]:
    """The part of each page that is made. Ends the program for verdicts on what Ray lacks."""
    written = {
        name: Verdict(word, why)
        for word, reasons in tomllib.loads(VERDICTS.read_text()).items()
        for name, why in reasons.items()
    }
    used: set[str] = set()
    made = {
        page: "\n".join([f"Ray {names['ray']}.", *table(names["modules"], modules, written, used)])
        for page, modules in PAGES.items()
    }
    if unknown := written.keys() - used:
        raise SystemExit(
            f"{VERDICTS.name} has verdicts on what Ray does not have: {sorted(unknown)}"
        )
    return made


def table(
    found: Mapping[str, Any],
    modules: Iterable[str],
    written: Mapping[str, Verdict],
    used: set[str],
) -> Iterator[str]:
    """The lines for some modules. Adds the names on which there may be a verdict to `used`."""
    for module in modules:
        yield from (
            "",
            f"### `{module}`",
            "",
            "| name | verdict | how, and why |",
            "| --- | --- | --- |",
        )
        for name, about in found[module].items():
            ours = ours_of(module, name)
            computed = Verdict("missing", "not there") if ours is None else compared(about, ours)
            verdict = weighed(written.get(name), computed)
            listed = [*about.get("fields", {}), *about.get("methods", {})]
            used |= {name, *(f"{name}.{member}" for member in listed)}
            same, others = [], []
            for member, of_member in members(about, ours) if ours is not None else ():
                key = f"{name}.{member}"
                of_member = weighed(written.get(key), of_member)
                if of_member.word == "same":
                    same.append(f"`{member}`")
                else:
                    others.append(row(key, of_member))
            if ours is None:
                all_of = ", ".join(f"`{one}`" for one in listed)
                why = "; ".join(filter(None, [verdict.why, all_of]))
                yield row(name, Verdict(verdict.word, why))
            else:
                alike = f"the same: {', '.join(same)}" if same else ""
                why = "; ".join(filter(None, [verdict.why, alike]))
                yield from (row(name, Verdict(verdict.word, why)), *others)


def weighed(written: Verdict | None, computed: Verdict) -> Verdict:
    """What is written by hand, where it is not out of date: only what is there differs, and only
    what is not there is refused.
    """
    if written is None or (written.word == "refused") != (computed.word == "missing"):
        return computed
    return written


def row(name: str, verdict: Verdict) -> str:
    """A line of the table."""
    return f"| `{name}` | {verdict.word} | {verdict.why} |"


def with_table(page: str, made: str) -> str:
    """The page with its made part replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def main() -> None:
    """Read the names, and write the pages."""
    names = read_ray()
    NAMES.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n")
    words = []
    for page, made in tables(names).items():
        page.write_text(with_table(page.read_text(), made))
        words += [line.split(" | ")[1] for line in made.splitlines() if line.startswith("| `")]
    print(", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words))))


if __name__ == "__main__":
    main()
