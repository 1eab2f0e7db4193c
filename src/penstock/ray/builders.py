"""Builders of Ray Serve applications, with the names of Ray Serve LLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from msgspec import structs

from penstock import lazy
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig
from penstock.serve.config.serving_args import (
    LLMServingArgs,
    PDServingArgs,
    load_serving_args,
    read_args,
)
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.data_parallel import as_group, grouped
from penstock.serve.models.handle import ModelHandle

Given = LLMServingArgs | PDServingArgs | Mapping[str, Any] | str | Path
"""Serving arguments, a mapping of them (a Serve file's `args`), or the path of a YAML file."""


def build_llm_deployment(
    llm_config: LLMConfig | Mapping[str, Any],
    *,
    name_prefix: str | None = None,
    bind_kwargs: Mapping[str, Any] | None = None,
    deployment_kwargs: Mapping[str, Any] | None = None,
    override_serve_options: Mapping[str, Any] | None = None,
    deployment_cls: type | None = None,
    settings: HttpSettings | None = None,
) -> Any:
    """One model as a Ray Serve application, which others can bind.

    Its name is `name_prefix` (default "LLMServer:", "DPServer:" for a group, or the name of a class
    of your own) and the model's id. `override_serve_options` take precedence over the
    configuration. `bind_kwargs` (or `deployment_kwargs`, their older name) go to the constructor of
    `deployment_cls`, which derives from `LLMServer`. Raises `ConfigError`, or `MissingExtraError`
    (Ray).
    """
    config = llm_config if isinstance(llm_config, LLMConfig) else LLMConfig.from_dict(llm_config)
    return _ray().build_deployment(
        config,
        settings=settings or HttpSettings(),
        name_prefix=name_prefix,
        bind_kwargs={**(deployment_kwargs or {}), **(bind_kwargs or {})},
        override_serve_options=override_serve_options,
        deployment_cls=deployment_cls,
    )


async def served_model(deployment_handle: Any) -> ModelHandle:
    """The model of a Ray Serve deployment, for code that holds its `DeploymentHandle`.

    Calls such as `served.chat(…)` go straight to the replicas by the model's routing policy, not
    through Ray. The result is bound to the event loop that made it.
    """
    ray = lazy.require("penstock.ray.replicas", needed_by="The Ray runtime")
    return cast(ModelHandle, await ray.served_model(deployment_handle))


def build_openai_app(llm_serving_args: Given) -> Any:
    """Models behind an OpenAI-compatible ingress, as a Ray Serve application for `serve.run` or an
    `import_path`.

    With `listen` the ingress opens a port of its own, so that requests bypass Ray's proxy. Raises
    `ConfigError`, and `MissingExtraError` without Ray.
    """
    return _ray().build_application(_args(llm_serving_args))


def build_dev_openai_app(builder_config: Given) -> Any:
    """As `build_openai_app`, with the control routes: `/sleep`, `/pause`, `/collective_rpc` …"""
    args = _args(builder_config)
    return _ray().build_application(
        structs.replace(args, http=structs.replace(args.http, dev=True))
    )


def build_pd_openai_app(pd_serving_args: Given) -> Any:
    """One model behind an OpenAI-compatible ingress, with separate prefill and decode engines, as a
    Ray Serve application. Takes `PDServingArgs`, or a mapping or file of that form.

    Raises `ConfigError`, also if the two sides do not fit, and `MissingExtraError` without Ray.
    """
    args = _args(pd_serving_args)
    if any(config.prefill_config is None for config in args.llm_configs):
        raise ConfigError("must have prefill_config and decode_config", field="pd_serving_args")
    return _ray().build_application(args)


def build_dp_deployment(
    llm_config: LLMConfig | Mapping[str, Any],
    *,
    name_prefix: str | None = None,
    bind_kwargs: Mapping[str, Any] | None = None,
    override_serve_options: Mapping[str, Any] | None = None,
    deployment_cls: type | None = None,
    settings: HttpSettings | None = None,
) -> Any:
    """As `build_llm_deployment`; each replica is a group of `engine_kwargs.data_parallel_size`
    ranks.

    Replica counts are counts of groups. Raises `ConfigError`, and `MissingExtraError` without Ray.
    """
    config = llm_config if isinstance(llm_config, LLMConfig) else LLMConfig.from_dict(llm_config)
    return build_llm_deployment(
        as_group(config),
        name_prefix=name_prefix,
        bind_kwargs=bind_kwargs,
        override_serve_options=override_serve_options,
        deployment_cls=deployment_cls,
        settings=settings,
    )


def build_dp_openai_app(dp_serving_args: Given) -> Any:
    """As `build_openai_app`; each replica is a group of `engine_kwargs.data_parallel_size` ranks.

    A mapping may hold one `llm_config` instead of `llm_configs`. Raises as `build_openai_app`.
    """
    return _ray().build_application(grouped(_args(dp_serving_args)))


def _args(given: Given) -> LLMServingArgs:
    if isinstance(given, PDServingArgs):
        return given.serving_args()
    if isinstance(given, LLMServingArgs):
        return given
    if isinstance(given, (str, Path)):
        return load_serving_args(given)
    if isinstance(given, Mapping):
        return read_args(given)
    raise ConfigError(
        "must be LLMServingArgs, a mapping or a path", field="llm_serving_args", value=given
    )


def _ray() -> Any:
    return lazy.require("penstock.ray.application", needed_by="The Ray runtime")
