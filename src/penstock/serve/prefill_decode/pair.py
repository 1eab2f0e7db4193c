"""Prefill and decode on engines of their own: what such a pair is made of.

Prompts are computed by the engines of `prefill_config`, their KV caches move to those of
`decode_config`, which make the tokens: neither waits for the other's kind of work, and each side
has as many replicas as it needs.
"""

from __future__ import annotations

import msgspec

from penstock.errors import ConfigError
from penstock.kv.base import make_connector
from penstock.llm_config import LLMConfig

DECODE = "penstock.serve.prefill_decode.decode:DecodeServer"
PREFILL = "penstock.serve.prefill_decode.prefill:PrefillServer"


def paired(prefill: LLMConfig, decode: LLMConfig) -> LLMConfig:
    """The decode side with its prefill side. Raises `ConfigError` for what could never hand over a
    cache.
    """
    for what in ("model_id", "model_source", "engine_name", "deterministic"):
        theirs, ours = getattr(prefill, what), getattr(decode, what)
        if theirs != ours:
            raise ConfigError(
                f"both sides must have the same {what}, not '{theirs}' and '{ours}'", field=what
            )
    if _adapters(prefill) != _adapters(decode):
        raise ConfigError(
            "both sides must find the same adapters", field="lora_config", value=_adapters(prefill)
        )
    names = [
        _connector(config, side) for side, config in (("prefill", prefill), ("decode", decode))
    ]
    if names[0] != names[1]:
        raise ConfigError(
            f"both sides must have the same connector, not {names[0]} and {names[1]}",
            field="engine_kwargs.kv_transfer_config.kv_connector",
        )
    prefill = msgspec.structs.replace(prefill, server_cls=prefill.server_cls or PREFILL)
    return msgspec.structs.replace(
        decode, server_cls=decode.server_cls or DECODE, prefill_config=prefill
    )


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
