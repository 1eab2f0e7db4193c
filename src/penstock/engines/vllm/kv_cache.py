"""The engine's KV cache as others see it: the connector that exchanges caches, the events that tell
of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.engines.vllm.options import VLLMOptions, installed
from penstock.errors import ConfigError
from penstock.kv.base import Connector, Setup, Site, configured_connector

EVENTS_FIELD = "engine_kwargs.kv_events_config"
_SOCKET = "kv-events-tcp:1000"
"""A file's name; vLLM adds a rank's number only to what looks like a port of TCP."""


def checked_connector(options: VLLMOptions) -> Connector | None:
    """As `configured_connector`. Raises `ConfigError` for one that would mix up adapters where
    there are some.
    """
    connector = configured_connector(options.engine)
    if (
        connector is not None
        and options.engine.get("enable_lora")
        and not connector.tells_adapters_apart
    ):
        raise ConfigError(
            f"the {connector.name} would mix up the caches of adapters",
            field="engine_kwargs.kv_transfer_config.kv_connector",
            value=connector.name,
            hint="Serve without adapters, or use the NixlConnector.",
        )
    return connector


def set_up(connector: Connector, options: VLLMOptions, site: Site) -> tuple[VLLMOptions, Setup]:
    """The options and everything else with which the next engine starts. Raises as
    `Connector.setup`.
    """
    site = msgspec.structs.replace(site, ranks=ranks(options), cpu=options.cpu)
    setup = connector.setup(site, f"vllm {installed().version}")
    return with_engine(options, kv_transfer_config=setup.config), setup


def ranks(options: VLLMOptions) -> int:
    """Engine cores that run side by side."""
    size = options.engine.get("data_parallel_size", 1)
    return size if isinstance(size, int) else 1


def events_config(given: Any, folder: str) -> dict[str, Any]:
    """The `kv_events_config` to start with: the user's, else events to a socket in `folder`, which
    only this machine's same user can reach. Raises `ConfigError`.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError("must be a mapping", field=EVENTS_FIELD, value=given)
    config = {"enable_kv_cache_events": True, "publisher": "zmq", **(given or {})}
    if config["publisher"] != "zmq" or not config["enable_kv_cache_events"]:
        raise ConfigError(
            "routing by KV caches needs events from the zmq publisher",
            field=EVENTS_FIELD,
            value=given,
        )
    config.setdefault("endpoint", f"ipc://{folder}/{_SOCKET}")
    if not str(config["endpoint"]).rpartition(":")[2].isdecimal():
        raise ConfigError(
            "must end with a port", field=f"{EVENTS_FIELD}.endpoint", value=config["endpoint"]
        )
    return config


def with_engine(options: VLLMOptions, **changes: Any) -> VLLMOptions:
    """The options with other engine arguments."""
    return msgspec.structs.replace(options, engine={**options.engine, **changes})
