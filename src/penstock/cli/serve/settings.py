"""The settings of a server, made from the options of `penstock serve` and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from penstock import env
from penstock.cli.serve.keys import keys_of
from penstock.cli.serve.vllm_flags import origins
from penstock.errors import ConfigError
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.config.settings import (
    BatchSettings,
    HttpSettings,
    Limits,
    StoreSettings,
    check_without_engine,
)


def settings_of(options: dict[str, Any], args: LLMServingArgs, runtime: str) -> HttpSettings:
    """The server's settings: those of the file, under what the command line and the environment
    say. Keys, origins and hosts of both count. Raises `ConfigError` for options that do not go
    together.
    """
    file = args.http
    if runtime == "ray":
        check_without_engine(file)
    names = [part for part in Limits.__struct_fields__ if options.get(part) is not None]
    limits = {name: options[name] for name in names}
    if options["max_body_mb"] is not None:
        limits["max_body_bytes"] = int(options["max_body_mb"] * 2**20)
    drain = options["drain_timeout_s"]
    if drain is None:
        drain = file.drain_timeout_s
    if drain is None:
        drain = max(
            config.deployment_config.graceful_shutdown_timeout_s for config in args.llm_configs
        )
    origins_typed = (*options["cors_origins"], *origins(options["allowed_origins"]))
    return replace(
        file,
        **keys_of(options, file),
        dev=options["dev"] or file.dev,
        cors_origins=(*file.cors_origins, *origins_typed),
        allowed_hosts=(*file.allowed_hosts, *options["allowed_hosts"]),
        limits=replace(file.limits, **limits),
        trust_request_chat_template=options["trust_request_chat_template"]
        or file.trust_request_chat_template,
        vllm_metrics=options["vllm_metrics"] or file.vllm_metrics,
        root_path=options["root_path"].rstrip("/") or file.root_path,
        engine_app=options["engine_app"] or file.engine_app,
        drain_timeout_s=drain,
        store=store_of(options, file.store),
        batches=_batches(
            options, file.batches, has_ingress=runtime == "local" or args.front == "ingress"
        ),
        console=file.console and not options["no_console"],
    )


def _batches(
    options: dict[str, Any], configured: BatchSettings | None, *, has_ingress: bool
) -> BatchSettings | None:
    """The batch APIs of the options; what they leave out is as configured. An ingress has them
    anyway.
    """
    options_of = {"path": "batch_dir", "database": "batch_database", "files": "batch_files"}
    given = {
        name: options[option] for name, option in options_of.items() if options[option] is not None
    }
    if options["no_batches"]:
        if given:
            raise ConfigError("stands beside other options of batches", field="--no-batches")
        return None
    if given.get("path"):
        given["path"] = str(Path(given["path"]).expanduser().absolute())
    if configured is not None:
        return replace(configured, **given)
    if not given and not has_ingress:
        return None
    return BatchSettings(**{"path": str(Path(env.state_dir()) / "service"), **given})


def store_of(options: dict[str, Any], configured: StoreSettings | None) -> StoreSettings | None:
    """The store of the options; what they leave out is as configured."""
    path, days, size = (options[f"store_{name}"] for name in ("path", "days", "max_mb"))
    stated: dict[str, Any] = {
        # Another process may open it, with another current folder.
        "path": None if path is None else str(Path(path).expanduser().absolute()),
        "ttl_s": None if days is None else days * 86400,
        "max_bytes": None if size is None else max(int(size * 2**20), 1),
    }
    given = {name: value for name, value in stated.items() if value is not None}
    if not given:
        return configured
    if configured is not None:
        return replace(configured, **given)
    if "path" not in given:
        raise ConfigError("--store-days and --store-max-mb need --store", field="--store")
    return StoreSettings(**given)
