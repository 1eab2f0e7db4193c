"""A serving configuration: models, and how clients reach them; from mappings and YAML files.

A file has one of five forms: a list of models; a mapping with `llm_configs`; a mapping with
`prefill_config` and `decode_config`; Ray Serve's file with `applications`, whose `args` are such
mappings; and a single model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import field
from msgspec.structs import replace

from penstock.config import Options, import_object, parse_options
from penstock.errors import ConfigError, nearest
from penstock.llm_config import LLMConfig
from penstock.llm_config.items import Items
from penstock.parsing import read_yaml
from penstock.serve.config.settings import HttpSettings

_log = logging.getLogger("penstock.serve")
_BUILDERS = tuple(f"build_{kind}openai_app" for kind in ("", "dev_", "pd_", "dp_"))
_FOR_SERVE_RUN = {
    "deployments": "deployment_config of the models",
    "runtime_env": "runtime_env of the models",
    "autoscaling_policy": "autoscaling_config of the models",
    "logging_config": "--log-level and --log-format",
}
"""Fields of an application that `serve run` honours → what both runtimes read instead."""
_OF_CLUSTER = {
    "http_options": "--host, --port and --root-path",
    "logging_config": "--log-level and --log-format",
    "tracing_config": "--tracing",
}
"""The same of what a Ray Serve file says beside its applications."""


class IngressClsConfig(Items, kw_only=True):
    """Another class of ingresses, or its import path, and further arguments of its constructor."""

    ingress_cls: Any = None
    ingress_extra_kwargs: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Checked now rather than in the ingress.
        import_object(self.ingress_cls, "ingress_cls_config.ingress_cls")


class IngressArgs(Options, kw_only=True):
    """The options of an ingress. `ingress_cls_config` may name another ingress class.
    `ingress_deployment_config` is for runtimes that deploy the ingress separately: there `listen`
    ("127.0.0.1:8000") opens a port on the ingress itself, and `http` holds its settings (keys,
    limits and so on).
    """

    ingress_cls_config: IngressClsConfig = field(default_factory=IngressClsConfig)
    ingress_deployment_config: dict[str, Any] = field(default_factory=dict)
    listen: str | None = None
    http: HttpSettings = HttpSettings()


class LLMServingArgs(IngressArgs, kw_only=True):
    """The models to serve, and the options of their ingress (`IngressArgs`). A model is an
    `LLMConfig`, a mapping, or the path of a YAML file with one model. With `front` "replica"
    the only replica of the only model opens the port of `listen` itself, so requests skip the
    ingress; while the replica is being replaced, nobody listens there.
    """

    llm_configs: list[LLMConfig]
    front: Literal["ingress", "replica"] = "ingress"

    def __post_init__(self) -> None:
        _ = self.listen_address  # checked now rather than on first use
        names = [config.model_id for config in self.llm_configs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"two models are called '{name}'",
                    field="model_loading_config.model_id",
                    value=name,
                )
        if self.front == "replica" and (why := self._why_no_front()):
            raise ConfigError(
                f"the replica cannot be the front: {why}", field="front", value=self.front
            )

    def _why_no_front(self) -> str:
        config, *others = self.llm_configs
        if others:
            return "there are several models"
        if config.deployment_config.replica_counts != (1, 1):
            return "there may be more replicas or fewer than one"
        if self.ingress_cls_config:
            return "an ingress class is configured"
        if self.http.batches is not None:
            return "the batch and files APIs are the ingress's"
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
        file with one model, relative to `folder` (default: the current one). Raises `ConfigError`.
        """
        return parse_options(cls, _with_models(given, folder or Path(), where), where)

    @classmethod
    def read_fields(cls, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        return _with_models(given, Path(), where)

    @property
    def lora_paths(self) -> dict[str, str]:
        """Model → path of its adapters on demand."""
        return {
            config.model_id: lora.dynamic_lora_loading_path
            for config in self.llm_configs
            if (lora := config.lora_config) is not None
            and lora.dynamic_lora_loading_path is not None
        }


class PDServingArgs(IngressArgs, kw_only=True):
    """One model, served by two kinds of engines, and the options of its ingress (`IngressArgs`)."""

    prefill_config: LLMConfig
    decode_config: LLMConfig

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Any], folder: Path | None = None, where: str = ""
    ) -> PDServingArgs:
        """Read a mapping. Either side is an `LLMConfig`, a mapping, or the path of a YAML file with
        one model, relative to `folder` (default: the current one). Raises `ConfigError`.
        """
        return parse_options(cls, _with_pair(given, folder or Path(), where), where)

    @classmethod
    def read_fields(cls, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        return _with_pair(given, Path(), where)

    def __post_init__(self) -> None:
        from penstock.serve.prefill_decode import paired  # imported only for a pair

        paired(self.prefill_config, self.decode_config)

    def serving_args(self) -> LLMServingArgs:
        """The same as one model with a prefill side."""
        ingress = {name: getattr(self, name) for name in IngressArgs.__struct_fields__}
        pair = replace(self.decode_config, prefill_config=self.prefill_config)
        return LLMServingArgs(llm_configs=[pair], **ingress)


def _with_models(given: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    given = _filled(given)
    if "llm_config" in given and "llm_configs" not in given:  # Ray Serve's one-model form
        given["llm_configs"] = [given.pop("llm_config")]
    entries = given.get("llm_configs")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ConfigError(
            "must be a list of at least one model",
            field=_at(where, "llm_configs"),
            value=entries,
        )
    given["llm_configs"] = [
        _read_model(entry, folder, _at(where, f"llm_configs[{n}]"))
        for n, entry in enumerate(entries)
    ]
    return given


def _with_pair(given: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    sides = {
        name: _read_model(given.get(name), folder, _at(where, name))
        for name in ("prefill_config", "decode_config")
    }
    return {**_filled(given), **sides}


def _filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """A copy, with a mapping in place of the None that Ray's builders of pairs and groups take."""
    return {
        name: {} if value is None and name == "ingress_deployment_config" else value
        for name, value in given.items()
    }


def load_serving_args(path: str | Path) -> LLMServingArgs:
    """Read a YAML file in any of the forms above. The models of several applications are merged.

    Raises `ConfigError` naming the file and the field.
    """
    file = Path(path)
    content = read_yaml(file)
    try:
        if isinstance(content, list):
            return LLMServingArgs.from_dict({"llm_configs": content}, file.parent)
        if not isinstance(content, Mapping):
            raise ConfigError(
                "must hold a list of models, or a mapping with 'llm_configs' or 'applications'"
            )
        if "applications" in content:
            _name_unread(content, _OF_CLUSTER, "")
            return _of_applications(content["applications"], file.parent)
        if "model_loading_config" in content:
            return LLMServingArgs.from_dict({"llm_configs": [content]}, file.parent)
        return read_args(content, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}", value=error.value) from None


def read_args(
    given: Mapping[str, Any], folder: Path | None = None, where: str = ""
) -> LLMServingArgs:
    """Read a mapping for `LLMServingArgs`, or one for `PDServingArgs`. Raises `ConfigError`."""
    if "prefill_config" in given or "decode_config" in given:
        return PDServingArgs.from_dict(given, folder, where).serving_args()
    return LLMServingArgs.from_dict(given, folder, where)


def _of_applications(applications: Any, folder: Path) -> LLMServingArgs:
    """The models of a Ray Serve file, behind one ingress. Its ports and routes are Ray's alone."""
    if not isinstance(applications, list) or not applications:
        raise ConfigError(
            "must be a list of at least one application", field="applications", value=applications
        )
    first, *others = found = [
        _of_application(application, folder, f"applications[{number}]")
        for number, application in enumerate(applications)
    ]
    for number, args in enumerate(others, 1):
        for name in (*IngressArgs.__struct_fields__, "front"):
            if getattr(args, name) != getattr(first, name):  # neither may stand for the other
                raise ConfigError(
                    "differs from that of the first application, and all are behind one ingress:"
                    " serve them as two files",
                    field=f"applications[{number}].args.{name}",
                )
    return replace(first, llm_configs=[config for args in found for config in args.llm_configs])


def _of_application(application: Any, folder: Path, where: str) -> LLMServingArgs:
    given = application if isinstance(application, Mapping) else {}
    args = given.get("args")
    if not isinstance(args, Mapping):
        raise ConfigError("must be a mapping with 'llm_configs'", field=f"{where}.args", value=args)
    import_path = str(given.get("import_path") or "")
    module, _, builder = import_path.replace(":", ".").rpartition(".")
    if module.partition(".")[0] in ("ray", "penstock") and builder not in _BUILDERS:
        raise ConfigError(
            f"there is no builder '{builder}'",
            field=f"{where}.import_path",
            value=import_path,
            hint=nearest(builder, _BUILDERS),
        )
    made = _imported_by(import_path, read_args(args, folder, f"{where}.args"))
    if builder == "build_dp_openai_app":
        from penstock.serve.models.data_parallel import grouped  # which imports this module

        made = grouped(made)
    if builder == "build_dev_openai_app":
        made = replace(made, http=replace(made.http, dev=True))
    _name_unread(given, _FOR_SERVE_RUN, where)
    if (prefix := given.get("route_prefix")) not in (None, "/"):
        _log.warning(
            "%s has no effect here: set --root-path %s", _at(where, "route_prefix"), prefix
        )
    return made


def _name_unread(given: Mapping[str, Any], fields: Mapping[str, str], where: str) -> None:
    for name, instead in fields.items():
        if given.get(name):
            _log.warning("%s has no effect here: set %s", _at(where, name), instead)


def _imported_by(import_path: str, args: LLMServingArgs) -> LLMServingArgs:
    """The models know the application's import path: Ray's own mean vLLM."""
    if not import_path:
        return args
    return replace(
        args,
        llm_configs=[
            replace(
                config,
                import_path=import_path,
                prefill_config=config.prefill_config
                and replace(config.prefill_config, import_path=import_path),
            )
            for config in args.llm_configs
        ],
    )


def _read_model(entry: Any, folder: Path, where: str) -> LLMConfig:
    """One model: an `LLMConfig`, a mapping, or the path of a YAML file in `folder`."""
    if isinstance(entry, LLMConfig):
        return _with_sides(entry)
    if isinstance(entry, (str, Path)):
        where = f"{where} ({entry})"
        entry = read_yaml(folder / entry)
    if not isinstance(entry, Mapping):
        raise ConfigError("must be a mapping, or the path of a YAML file", field=where, value=entry)
    try:
        return _with_sides(LLMConfig.from_dict(entry))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", value=error.value) from None


def _with_sides(config: LLMConfig) -> LLMConfig:
    """The model, checked against its prefill side, if any."""
    if config.prefill_config is None:
        return config
    from penstock.serve.prefill_decode import paired  # imported only for a pair

    return paired(config.prefill_config, config)


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
