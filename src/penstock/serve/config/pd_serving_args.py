"""The configuration of a model with a prefill and a decode side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from penstock.config import parse_options
from penstock.llm_config import LLMConfig
from penstock.serve.config.serving_args import LLMServingArgs, read_model
from penstock.serve.config.settings import HttpSettings


class PDServingArgs(Struct, frozen=True, kw_only=True):
    """One model, served by two kinds of engines. The other fields are those of `LLMServingArgs`."""

    prefill_config: LLMConfig
    decode_config: LLMConfig
    ingress_cls_config: dict[str, Any] = field(default_factory=dict)
    ingress_deployment_config: dict[str, Any] = field(default_factory=dict)
    listen: str | None = None
    http: HttpSettings = HttpSettings()

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Any], folder: Path | None = None, where: str = ""
    ) -> PDServingArgs:
        """Read a mapping. Either side is an `LLMConfig`, a mapping, or the path of a YAML file with
        one model; paths are relative to `folder` (default: the current one). Raises `ConfigError`.
        """
        sides = {
            name: read_model(
                given.get(name), folder or Path(), f"{where}.{name}" if where else name
            )
            for name in ("prefill_config", "decode_config")
        }
        return parse_options(cls, {**given, **sides}, where)

    def serving_args(self) -> LLMServingArgs:
        """The same as one model with a prefill side. Raises `ConfigError` for two sides that
        do not match.
        """
        from penstock.serve.prefill_decode import paired  # imported only for a pair

        return LLMServingArgs(
            llm_configs=[paired(self.prefill_config, self.decode_config)],
            ingress_cls_config=self.ingress_cls_config,
            ingress_deployment_config=self.ingress_deployment_config,
            listen=self.listen,
            http=self.http,
        )
