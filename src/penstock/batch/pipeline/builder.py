"""Builds processors from their configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from penstock.batch.pipeline.configs import (
    ChatTemplateStageConfig,
    DetokenizeStageConfig,
    EngineProcessorConfig,
    HttpRequestProcessorConfig,
    HttpRequestStageConfig,
    OpenVINOEngineProcessorConfig,
    PrepareMultimodalStageConfig,
    ProcessorConfig,
    ServeDeploymentProcessorConfig,
    SGLangEngineProcessorConfig,
    StageConfig,
    TokenizerStageConfig,
    stage_config,
    vLLMEngineProcessorConfig,
)
from penstock.batch.pipeline.processor import Processor
from penstock.batch.pipeline.processor_rows import RowFunction
from penstock.batch.rows.repair import Repair
from penstock.batch.stages.base import StatefulStage
from penstock.batch.stages.engine import (
    EngineStage,
    OpenVINOEngineStage,
    SGLangEngineStage,
    vLLMEngineStage,
)
from penstock.batch.stages.http_worker import HttpRequests, HttpRequestStage
from penstock.batch.stages.media import PrepareMultimodalStage
from penstock.batch.stages.serve_deployment import ServeDeploymentStage
from penstock.batch.stages.text import (
    ChatTemplates,
    ChatTemplateStage,
    DetokenizeStage,
    Texts,
    TokenizeStage,
    Tokens,
)
from penstock.engines.base import engine_class, with_deterministic
from penstock.engines.disk.sources import check_url
from penstock.engines.registry import EngineSource
from penstock.errors import ConfigError, nearest

Builder = Callable[..., Processor]
Stages = Callable[..., list[StatefulStage]]
Override = Callable[[str, StatefulStage], Any]

_STAGES: dict[str, type[EngineStage]] = {
    "openvino": OpenVINOEngineStage,
    "vllm": vLLMEngineStage,
    "sglang": SGLangEngineStage,
}
_OWN_ARGUMENTS = ("preprocess", "postprocess", "preprocess_map_kwargs", "postprocess_map_kwargs")


class ProcessorBuilder:
    """Makes processors of configurations. Register your own types of configurations here."""

    _builders: ClassVar[dict[type[ProcessorConfig], Builder]] = {}

    @classmethod
    def register(cls, config_type: type[ProcessorConfig], builder: Builder) -> None:
        """Have `builder(config, **kwargs)` make the processors of a type of configuration.

        Raises `ConfigError` if the type is taken.
        """
        if config_type in cls._builders:
            raise ConfigError(
                f"a builder of {config_type.__name__} is registered already", field="config_type"
            )
        cls._builders[config_type] = builder

    @classmethod
    def clear_registry(cls) -> None:
        """Forget all registered builders. Those of Penstock's own configurations stay."""
        cls._builders.clear()

    @classmethod
    def validate_builder_kwargs(cls, builder_kwargs: Mapping[str, Any] | None) -> None:
        """Raise `ConfigError` if they repeat an argument of `build_processor`."""
        repeated = [name for name in _OWN_ARGUMENTS if name in (builder_kwargs or {})]
        if repeated:
            raise ConfigError(
                f"give {', '.join(repeated)} to build_processor itself", field="builder_kwargs"
            )

    @classmethod
    def build(
        cls,
        config: ProcessorConfig,
        override_stage_config_fn: Override | None = None,
        **kwargs: Any,
    ) -> Processor:
        """Make the processor. `override_stage_config_fn` gets each stage's name and the stage,
        which it may change.

        `kwargs` go to the builder. Raises `ConfigError`, also for a keyword that it does not take.
        """
        kinds = {**_OURS, **cls._builders}
        builder = next((kinds[kind] for kind in type(config).__mro__ if kind in kinds), None)
        if builder is None:
            hint = nearest(type(config).__name__, (kind.__name__ for kind in kinds))
            raise ConfigError(
                f"nothing builds a {type(config).__name__}", field="config", hint=hint
            )
        _check_taken(builder, kwargs, type(config).__name__)
        processor = builder(config, **kwargs)
        if override_stage_config_fn is not None:
            for name, stage in processor.stages.items():
                override_stage_config_fn(name, stage)
        return processor


def build_processor(
    config: ProcessorConfig,
    preprocess: RowFunction | None = None,
    postprocess: RowFunction | None = None,
    preprocess_map_kwargs: Mapping[str, Any] | None = None,
    postprocess_map_kwargs: Mapping[str, Any] | None = None,
    builder_kwargs: Mapping[str, Any] | None = None,
) -> Processor:
    """A processor: call it on a data set.

    `preprocess` takes a row as a dict and returns the columns that the stages read, which are added
    to the row's own; `postprocess` takes the row with all columns and returns the output row.
    `builder_kwargs` go to the builder of the configuration's type: those of engines take
    `chat_template_kwargs`, variables of the chat template for all rows. Raises `ConfigError`.
    """
    ProcessorBuilder.validate_builder_kwargs(builder_kwargs)
    return ProcessorBuilder.build(
        config,
        preprocess=preprocess,
        postprocess=postprocess,
        preprocess_map_kwargs=preprocess_map_kwargs,
        postprocess_map_kwargs=postprocess_map_kwargs,
        **(builder_kwargs or {}),
    )


def _building(stages: Stages) -> Builder:
    """The builder of processors with these stages."""

    def build(
        config: ProcessorConfig,
        preprocess: RowFunction | None = None,
        postprocess: RowFunction | None = None,
        preprocess_map_kwargs: Mapping[str, Any] | None = None,
        postprocess_map_kwargs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Processor:
        _check_taken(stages, more, type(config).__name__)
        return Processor(
            *(config, stages(config, **more), preprocess, postprocess),
            *(preprocess_map_kwargs, postprocess_map_kwargs),
        )

    return build


def _check_taken(function: Callable[..., Any], given: Iterable[str], kind: str) -> None:
    """Raise `ConfigError` for names that the function does not take."""
    taken = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for name in given:
        if name not in taken:
            known = [other for other in taken if other not in ("config", *_OWN_ARGUMENTS)]
            hint = nearest(name, known) or "It takes none"
            raise ConfigError(
                f"the builder of {kind} takes no '{name}'", field="builder_kwargs", hint=hint
            )


def _engine_stages(
    config: EngineProcessorConfig, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[StatefulStage]:
    options = {**_convert(config), **config.engine_kwargs}
    if config.deterministic:
        options = with_deterministic(engine_class(config.engine_name), options)
    source = EngineSource(config.engine_name, config.model_source, options, config.engine)
    generates = config.task_type == "generate"
    check_url(config.dynamic_lora_loading_path or "", "dynamic_lora_loading_path", "Adapters at")
    for name in ("on_length", "on_invalid_json"):
        meant = (
            ("keep", "truncate")
            if name == "on_length" and config.task_type == "embed"
            else ("keep",)
        )
        if not generates and getattr(config, name) not in meant:
            raise ConfigError(f"has no meaning for the task '{config.task_type}'", field=name)
    template_field = _legacy(config.chat_template_stage, config.apply_chat_template)
    chat = stage_config(ChatTemplateStageConfig, template_field, "chat_template_stage")
    tokens = stage_config(
        TokenizerStageConfig, _legacy(config.tokenize_stage, config.tokenize), "tokenize_stage"
    )
    texts = stage_config(
        DetokenizeStageConfig,
        _legacy(config.detokenize_stage, config.detokenize),
        "detokenize_stage",
    )
    media_field = _legacy(config.prepare_multimodal_stage, config.has_image)
    media = stage_config(PrepareMultimodalStageConfig, media_field, "prepare_multimodal_stage")
    for name, stage in (
        ("chat_template_stage", chat),
        ("tokenize_stage", tokens),
        ("detokenize_stage", texts),
        ("prepare_multimodal_stage", media),
    ):
        if stage is not None and stage.model_source not in (None, config.model_source):
            raise ConfigError(
                "must be that of the processor, whose engine does it", field=f"{name}.model_source"
            )

    own: dict[str, Any]
    stages: list[StatefulStage] = []
    if media is not None:
        options = {
            "content_format": "openai"
            if media.apply_sys_msg_formatting
            else media.chat_template_content_format or "string",
            "timeout_s": media.timeout_s,
            "max_bytes": media.max_bytes,
            "folder": (media.model_config_kwargs or {}).get("allowed_local_media_path"),
        }
        stages.append(PrepareMultimodalStage(None, options, _placing(config, media)))
    template = (chat.chat_template if chat is not None else None) or config.chat_template
    variables = {**(chat_template_kwargs or {}), **((chat and chat.chat_template_kwargs) or {})}
    # A stage that encodes the prompt needs the prompt, so the template gets a stage too.
    tokenizes = tokens is not None and generates and _own(config.tokenize_stage)
    own_template = _own(template_field) or tokenizes or config.ray_columns
    # A conversation may also be embedded: as its filled template.
    templated = chat is not None and own_template and config.task_type in ("generate", "embed")
    if chat is not None and (generates or templated):
        own = {"source": source, "template": template, "variables": variables}
        stages.append(
            _text_stage(ChatTemplateStage, ChatTemplates, own, config, chat, separate=templated)
        )
    if tokens is not None and generates:
        own = {"source": source, "templated": templated}
        stages.append(_text_stage(TokenizeStage, Tokens, own, config, tokens, separate=tokenizes))
    detokenizes = texts is not None and generates and _own(config.detokenize_stage)
    stages.append(
        _STAGES.get(config.engine_name, EngineStage)(
            None,
            {
                "source": source,
                "task": config.task_type,
                "chat": chat is not None,
                "templated": templated,
                "text": None if texts is None else not detokenizes,
                "template": template,
                "variables": variables,
                "lora_path": config.dynamic_lora_loading_path,
                "most": _most(config),
                "ray_columns": config.ray_columns,
                "max_attempts": config.max_attempts,
                "repair": Repair.of(config.on_length, config.on_invalid_json, config.max_attempts),
            },
            _placing(config, StageConfig()),
        )
    )
    if texts is not None and generates:
        own = {"source": source, "whole": config.ray_columns}
        stages.append(_text_stage(DetokenizeStage, Texts, own, config, texts, separate=detokenizes))
    return stages


def _convert(config: EngineProcessorConfig) -> dict[str, Any]:
    """The options that make vLLM's engine fit the task, whatever the model was made for: a decoder
    can embed. "classify" needs them only in Ray's form; ours also classifies by labels, with an
    engine that generates.
    """
    task = config.task_type
    if config.engine_name != "vllm" or config.engine is not None:
        return {}
    pooled = task == "embed" or (task == "classify" and config.ray_columns)
    if not pooled or {"runner", "convert"} & config.engine_kwargs.keys():
        return {}
    return {"runner": "pooling", "convert": task}


def _most(config: EngineProcessorConfig) -> int | None:
    """The bound on rows in flight; None if the configuration states none."""
    most = config.max_pending_requests
    if most is not None and most < 1:
        return config.batch_size * config.max_concurrent_batches
    return most


def _http_stages(config: HttpRequestProcessorConfig) -> list[StatefulStage]:
    stage = stage_config(HttpRequestStageConfig, config.http_request_stage, "http_request_stage")
    if stage is None:
        raise ConfigError(
            "cannot be left out: it is all that this processor does", field="http_request_stage"
        )
    placing = _placing(config, stage)
    arguments = {
        "url": config.url,
        "headers": config.headers,
        "qps": config.qps,
        "max_retries": config.max_retries,
        "base_retry_wait_time_in_s": config.base_retry_wait_time_in_s,
        "session_factory": config.session_factory,
        "concurrency": placing["batch_size"],
        "adaptive": config.adaptive,
        "requests_per_minute": config.requests_per_minute,
        "tokens_per_minute": config.tokens_per_minute,
        "timeout_s": config.timeout_s,
    }
    given = {name: value for name, value in arguments.items() if value is not None}
    HttpRequests(**given)  # so that a wrong option is refused before the rows come
    return [HttpRequestStage(None, given, placing)]


def _deployment_stages(config: ServeDeploymentProcessorConfig) -> list[StatefulStage]:
    arguments = {
        "deployment_name": config.deployment_name,
        "app_name": config.app_name,
        "dtype_mapping": config.dtype_mapping,
        "request_timeout_s": config.request_timeout_s,
        "rows_per_call": config.rows_per_call,
        "ray_columns": config.ray_columns,
    }
    return [ServeDeploymentStage(None, arguments, _placing(config, StageConfig()))]


_OURS: dict[type[ProcessorConfig], Builder] = {
    HttpRequestProcessorConfig: _building(_http_stages),
    OpenVINOEngineProcessorConfig: _building(_engine_stages),
    vLLMEngineProcessorConfig: _building(_engine_stages),
    SGLangEngineProcessorConfig: _building(_engine_stages),
    ServeDeploymentProcessorConfig: _building(_deployment_stages),
}


def _legacy(given: Any, older: bool | None) -> Any:
    """The value of a stage's field. `older` is the flag of the field's older name, which can switch
    the stage on or off.
    """
    if older is None:
        return given
    return given if older and given is not False else older


def _own(given: Any) -> bool:
    """Whether a stage's field asks for a separate stage (by a configuration). True and False only
    say whether its work is done.
    """
    return not isinstance(given, bool)


def _text_stage(
    kind: type[StatefulStage],
    worker: type[Any],
    arguments: Mapping[str, Any],
    config: ProcessorConfig,
    stage: StageConfig,
    *,
    separate: bool,
) -> StatefulStage:
    return kind(worker, arguments, _placing(config, stage)) if separate else kind()


def _placing(config: ProcessorConfig, stage: StageConfig) -> dict[str, Any]:
    """How many workers a stage has, how many rows each has at a time, and its CPUs, memory and
    environment. What the stage does not state is the processor's.
    """
    placing = {
        "batch_size": stage.batch_size or config.batch_size,
        "concurrency": stage.concurrency or config.concurrency,
        "runtime_env": stage.runtime_env or getattr(config, "runtime_env", None),
        "num_cpus": stage.num_cpus,
        "memory": stage.memory,
    }
    return {name: value for name, value in placing.items() if value is not None}
