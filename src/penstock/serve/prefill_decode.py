"""Prefill and decode on engines of their own: what such a pair is made of.

Prompts are computed by the engines of `prefill_config`, their KV caches move to those of `decode_config`, which make
the tokens: neither waits for the other's kind of work, and each side has as many replicas as it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from penstock.config import parse_options
from penstock.errors import ConfigError
from penstock.kv.base import make_connector
from penstock.llm_config import LLMConfig
from penstock.serve.serving_args import LLMServingArgs, read_model
from penstock.serve.settings import HttpSettings

DECODE = "penstock.serve.decode_server:DecodeServer"
PREFILL = "penstock.serve.prefill_server:PrefillServer"


class PDServingArgs(Struct, frozen=True, kw_only=True):
    """One model, served by two kinds of engines. The other fields are those of `LLMServingArgs`."""

    prefill_config: LLMConfig
    decode_config: LLMConfig
    ingress_cls_config: dict[str, Any] = field(default_factory=dict)
    ingress_deployment_config: dict[str, Any] = field(default_factory=dict)
    listen: str | None = None
    http: HttpSettings = HttpSettings()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], folder: Path | None = None, where: str = "") -> PDServingArgs:
        """Read a mapping. Either side is an `LLMConfig`, a mapping, or the path of a YAML file with one model; paths
        are relative to `folder` (default: the current one). Raises `ConfigError`.
        """
        sides = {
            name: read_model(given.get(name), folder or Path(), f"{where}.{name}" if where else name)
            for name in ("prefill_config", "decode_config")
        }
        return parse_options(cls, {**given, **sides}, where)

    def serving_args(self) -> LLMServingArgs:
        """The same as one model with a prefill side. Raises `ConfigError` for two sides that do not fit."""
        return LLMServingArgs(
            llm_configs=[paired(self.prefill_config, self.decode_config)],
            ingress_cls_config=self.ingress_cls_config,
            ingress_deployment_config=self.ingress_deployment_config,
            listen=self.listen,
            http=self.http,
        )


def paired(prefill: LLMConfig, decode: LLMConfig) -> LLMConfig:
    """The decode side with its prefill side. Raises `ConfigError` for what could never hand over a cache."""
    for what in ("model_id", "model_source", "engine_name"):
        theirs, ours = getattr(prefill, what), getattr(decode, what)
        if theirs != ours:
            raise ConfigError(f"both sides must have the same {what}, not '{theirs}' and '{ours}'", field=what)
    if _adapters(prefill) != _adapters(decode):
        raise ConfigError("both sides must find the same adapters", field="lora_config", value=_adapters(prefill))
    names = [_connector(config, side) for side, config in (("prefill", prefill), ("decode", decode))]
    if names[0] != names[1]:
        raise ConfigError(
            f"both sides must have the same connector, not {names[0]} and {names[1]}",
            field="engine_kwargs.kv_transfer_config.kv_connector",
        )
    prefill = msgspec.structs.replace(prefill, server_cls=prefill.server_cls or PREFILL)
    return msgspec.structs.replace(decode, server_cls=decode.server_cls or DECODE, prefill_config=prefill)


def _connector(config: LLMConfig, side: str) -> str:
    given = config.engine_kwargs.get("kv_transfer_config")
    field = f"{side}_config.engine_kwargs.kv_transfer_config"
    if given is None:
        raise ConfigError(
            "is needed to hand KV caches over",
            field=field,
            hint="Such as {kv_connector: NixlConnector}.",
        )
    return make_connector(given, field).name


def _adapters(config: LLMConfig) -> tuple[str | None, dict[str, str]] | None:
    lora = config.lora_config
    return None if lora is None else (lora.dynamic_lora_loading_path, lora.adapters)
