"""The content of a serving configuration: models, and how clients reach them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from penstock.config import parse_options, read_yaml
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.config.settings import HttpSettings


class LLMServingArgs(Struct, frozen=True, kw_only=True):
    """The models to serve, and the options of their ingress.

    `llm_configs` holds `LLMConfig`s. `ingress_cls_config` may name another ingress class
    (`ingress_cls`, `ingress_extra_kwargs`). `ingress_deployment_config` is for runtimes that deploy
    the ingress separately: there `listen` ("127.0.0.1:8000") opens a port on the ingress itself,
    and `http` holds its settings (keys, limits and so on). With `front` "replica" the only replica
    of the only model opens that port itself, so requests skip the ingress; while the replica is
    being replaced, nobody listens there.
    """

    llm_configs: list[LLMConfig]
    ingress_cls_config: dict[str, Any] = field(default_factory=dict)
    ingress_deployment_config: dict[str, Any] = field(default_factory=dict)
    listen: str | None = None
    front: Literal["ingress", "replica"] = "ingress"
    http: HttpSettings = HttpSettings()

    def __post_init__(self) -> None:
        _ = self.listen_address  # checked now rather than on first use
        if self.front == "replica" and (why := self._why_no_front()):
            raise ConfigError(
                f"the replica cannot be the front: {why}", field="front", value=self.front
            )

    def _why_no_front(self) -> str:
        config, *others = self.llm_configs
        fixed, scaling = config.deployment_config.num_replicas, config.autoscaling
        if others:
            return "there are several models"
        if (fixed, fixed) != (1, 1) and (
            fixed is not None or (scaling.min_replicas, scaling.max_replicas) != (1, 1)
        ):
            return "there may be more replicas or fewer than one"
        if self.ingress_cls_config:
            return "an ingress class is configured"
        return "the control routes are the ingress's" if self.http.dev else ""

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """The host and port of `listen`."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(
                "must be a host and a port, such as 127.0.0.1:8000",
                field="listen",
                value=self.listen,
            )
        return host.strip("[]"), int(port)

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Any], folder: Path | None = None, where: str = ""
    ) -> LLMServingArgs:
        """Read a mapping. Each of `llm_configs` is an `LLMConfig`, a mapping, or the path of a YAML
        file with one model; paths are relative to `folder` (default: the current one). Raises
        `ConfigError`.
        """
        if "llm_config" in given and "llm_configs" not in given:  # Ray Serve's one-model form
            given = {
                "llm_configs": [given["llm_config"]],
                **{k: v for k, v in given.items() if k != "llm_config"},
            }
        entries = given.get("llm_configs")
        if not isinstance(entries, (list, tuple)) or not entries:
            raise ConfigError(
                "must be a list of at least one model",
                field=_at(where, "llm_configs"),
                value=entries,
            )
        models = [
            read_model(entry, folder or Path(), _at(where, f"llm_configs[{n}]"))
            for n, entry in enumerate(entries)
        ]
        return parse_options(cls, {**given, "llm_configs": models}, where)

    @property
    def lora_paths(self) -> dict[str, str]:
        """Model → path of its adapters on demand."""
        loras = {config.model_id: config.lora_config for config in self.llm_configs}
        return {
            model_id: lora.dynamic_lora_loading_path
            for model_id, lora in loras.items()
            if lora is not None and lora.dynamic_lora_loading_path is not None
        }


def _with_sides(config: LLMConfig) -> LLMConfig:
    """The model, checked against its prefill side, if any."""
    if config.prefill_config is None:
        return config
    from penstock.serve.prefill_decode import paired  # imported only for a pair

    return paired(config.prefill_config, config)


def read_model(entry: Any, folder: Path, where: str) -> LLMConfig:
    """One model: an `LLMConfig`, a mapping, or the path of a YAML file in `folder`. Raises
    `ConfigError`.
    """
    if isinstance(entry, LLMConfig):
        return _with_sides(entry)
    if isinstance(entry, str):
        where = f"{where} ({entry})"
        entry = read_yaml(folder / entry)
    if not isinstance(entry, Mapping):
        raise ConfigError("must be a mapping, or the path of a YAML file", field=where, value=entry)
    try:
        return _with_sides(LLMConfig.from_dict(entry))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", value=error.value) from None


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
