"""Configurations of processors and their stages. Names and defaults are those of `ray.data.llm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from msgspec import Meta, field
from msgspec.structs import force_setattr

from penstock.config import Count, Options, Pause, Positive, Rate, Seconds, parse_options
from penstock.errors import ConfigError
from penstock.llm_config import PlacementGroupConfig, accelerator_name

Concurrency = Positive | Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=2)]
"""Workers of a stage: a number, or the least and the most. One machine takes the most."""


def check_concurrency(given: int | tuple[int, ...] | None) -> None:
    """Raise `ConfigError` for a pair whose first number is the larger one."""
    if not isinstance(given, int | None) and given[0] > given[-1]:
        raise ConfigError(
            "the least must not be more than the most", field="concurrency", value=given
        )


TaskType = Literal["generate", "embed", "classify", "score", "decide", "transcribe", "speak"]


COSTS_ONLY = frozenset(
    {
        *("batch_size", "concurrency", "accelerator_type"),
        *("resources_per_bundle", "runtime_env"),
        *("placement_group_config", "max_pending_requests"),
        *("max_concurrent_batches", "max_attempts"),
        *("max_tasks_in_flight_per_actor", "log_engine_metrics", "should_continue_on_error"),
        "experimental",
        *("num_cpus", "memory"),
        *("headers", "session_factory", "qps"),
        *("requests_per_minute", "tokens_per_minute", "adaptive"),
        *("max_retries", "base_retry_wait_time_in_s", "timeout_s"),
        "request_timeout_s",
    }
)
"""Fields of processors and stages that decide no row of the output, only memory, time or place: a
job that is resumed may change them. Which of `engine_kwargs` decide, the engine says.
"""


# Stages
class StageConfig(Options, kw_only=True):
    """What every stage's configuration has.

    `concurrency` is the number of workers and `batch_size` how many rows each has at a time; None
    takes the processor's. `num_cpus`, `memory` (bytes) and `runtime_env` are for Ray.
    """

    enabled: bool = True
    batch_size: Positive | None = None
    concurrency: Concurrency | None = None
    runtime_env: dict[str, Any] | None = None
    num_cpus: Annotated[float, Meta(ge=0)] | None = None
    memory: Annotated[float, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        check_concurrency(self.concurrency)


class ChatTemplateStageConfig(StageConfig, kw_only=True):
    """`messages` to `prompt`. `chat_template` (a template's text) replaces the model's own."""

    model_source: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizerStageConfig(StageConfig, kw_only=True):
    """Encodes `prompt` into the column `tokenized_prompt`."""

    model_source: str | None = None


class DetokenizeStageConfig(StageConfig, kw_only=True):
    """Decodes `generated_tokens` into the column `generated_text`."""

    model_source: str | None = None


class PrepareMultimodalStageConfig(StageConfig, kw_only=True):
    """Images in `messages`, by path, URL or bytes, to images within the messages.

    `chat_template_content_format` and `apply_sys_msg_formatting`: with "openai", or if true, texts
    stay lists of parts; else a message without images gets its text as one string. `timeout_s` is
    how long the loading of an image may take, `max_bytes` how large it may be. Of
    `model_config_kwargs` there is `allowed_local_media_path`: files of this machine must be below
    it, and other URLs than those of HTTP and files are refused.
    """

    model_source: str | None = None
    model_config_kwargs: dict[str, Any] | None = None
    chat_template_content_format: Literal["string", "openai"] | None = "string"
    apply_sys_msg_formatting: bool | None = False
    timeout_s: Seconds = 30.0
    max_bytes: Positive = 64 << 20

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        for name, value in (self.model_config_kwargs or {}).items():
            if name != "allowed_local_media_path" or not isinstance(value, str):
                raise ConfigError(
                    "has no effect: images are loaded without the model's configuration",
                    field=f"model_config_kwargs.{name}",
                    hint="The engine takes such options as engine_kwargs.",
                )


class HttpRequestStageConfig(StageConfig, kw_only=True):
    """Sends `payload` and stores the answer in `http_response`."""


# Processors
class ProcessorConfig(Options, kw_only=True):
    """What every processor's configuration has, and the base of your own.

    `batch_size` and `concurrency` are those of each stage that does not say otherwise. With
    `should_continue_on_error` a row that fails becomes an error row, and each row has the columns
    `status` and `error`; else the first failure ends the run. `accelerator_type` (a name of Ray's)
    and `resources_per_bundle` (of one worker of an engine) are for stages that run an engine, on
    Ray.
    """

    batch_size: Positive = 32
    accelerator_type: str | None = None
    concurrency: Concurrency = 1
    resources_per_bundle: dict[str, float] | None = None
    should_continue_on_error: bool = False
    ray_columns: bool = False
    """Whether rows have the columns too that `ray.data.llm` has and Penstock lacks."""

    def __post_init__(self) -> None:
        check_concurrency(self.concurrency)
        if self.accelerator_type is not None:
            force_setattr(self, "accelerator_type", accelerator_name(self.accelerator_type))

    def get_concurrency(self, autoscaling_enabled: bool = True) -> dict[str, int]:
        """The pool of workers: `min_size` and `max_size`, or the `size` of one that is fixed."""
        if isinstance(self.concurrency, int):
            if not autoscaling_enabled:
                return {"size": self.concurrency}
            return {"min_size": 1, "max_size": self.concurrency}
        return {"min_size": self.concurrency[0], "max_size": self.concurrency[-1]}


class HttpRequestProcessorConfig(ProcessorConfig, kw_only=True):
    """Sends each row's `payload` to `url` and puts the JSON answer into `http_response`.

    `batch_size` requests of each worker are under way at a time; with `adaptive` fewer while the
    endpoint refuses for load. `qps`, `requests_per_minute` and `tokens_per_minute` are limits of
    all workers together. A request whose failure may pass is sent again up to `max_retries` times,
    after `base_retry_wait_time_in_s` seconds, doubled each time, or when the endpoint asks for it.
    `session_factory` makes the aiohttp session. `timeout_s` is for one attempt.
    """

    batch_size: Positive = 64
    url: str
    headers: dict[str, Any] | None = None
    qps: Rate | None = None
    max_retries: Count = 0
    base_retry_wait_time_in_s: Pause = 1.0
    session_factory: Any = None
    http_request_stage: Any = True
    adaptive: bool = True
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    timeout_s: Seconds | None = None


class Experimental(Options, kw_only=True):
    """What Ray once took as `experimental` of a processor on an engine."""

    max_tasks_in_flight_per_actor: Positive | None = None


class EngineProcessorConfig(ProcessorConfig, kw_only=True):
    """What processors on an engine have in common.

    What runs: `model_source` and `engine_kwargs` make an engine of the processor's own; or `engine`
    is one that others use as well: an engine object, which stays as its owner keeps it, or a name,
    under which the first processor that needs it makes it, and which it keeps until
    `penstock.engines.registry.stop_engines`. `deterministic` makes it answer the same request the
    same each time, whatever else runs.

    What it does: `task_type` "generate", "embed", "classify", "score", "decide",
    "transcribe" or "speak".
    `dynamic_lora_loading_path` is where the adapters lie that rows name in `model`.

    Stages take True (the engine does it in its own pass), False, or a configuration (a stage of its
    own). `apply_chat_template`, `chat_template`, `tokenize`, `detokenize` and `has_image` are older
    names of these.

    How: `max_pending_requests` are in flight at a time (default: a quarter more than the engine
    works on at once; 0 or less: `batch_size` × `max_concurrent_batches`), a row whose failure may
    pass is asked `max_attempts` times. With `on_length` "raise" an answer that its `max_tokens` cut
    off is asked for again with twice as many, with "truncate" a prompt, or a text to embed, that is
    too long for the model is shortened, "raise,truncate" does both. With `on_invalid_json` "retry"
    an answer that does not follow the row's JSON Schema is asked for again, up to `max_attempts`
    times, and the request says what was wrong; a row without a good one fails.
    `max_tasks_in_flight_per_actor` (also as the one key of `experimental`, as Ray had it),
    `runtime_env` and `placement_group_config` are for Ray.
    """

    engine_name: ClassVar[str]
    task_key: ClassVar[str] = ""
    """What `task_type` is called in `engine_kwargs`, where Ray notes it."""

    model_source: str | None = None
    engine: Any = None
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    task_type: TaskType = "generate"
    dynamic_lora_loading_path: str | None = None
    log_engine_metrics: bool = True
    runtime_env: dict[str, Any] | None = None
    placement_group_config: dict[str, Any] | None = None
    max_pending_requests: int | None = None
    max_concurrent_batches: Positive = 8
    max_tasks_in_flight_per_actor: Positive | None = None
    experimental: dict[str, Any] = field(default_factory=dict)
    max_attempts: Positive = 3
    on_length: str = "keep"
    on_invalid_json: Literal["keep", "retry"] = "keep"
    chat_template_stage: Any = True
    tokenize_stage: Any = True
    detokenize_stage: Any = True
    prepare_multimodal_stage: Any = False
    apply_chat_template: bool | None = None
    chat_template: str | None = None
    tokenize: bool | None = None
    detokenize: bool | None = None
    has_image: bool | None = None

    def __post_init__(self) -> None:
        ProcessorConfig.__post_init__(self)
        if self.engine is None and self.model_source is None:
            raise ConfigError(
                "say which model: a directory, a file, a hub id, or 'demo'", field="model_source"
            )
        for name in ("engine_kwargs", "deterministic"):
            if not getattr(self, name):
                continue
            if self.engine is not None and not isinstance(self.engine, str):
                raise ConfigError(
                    "has no meaning beside an engine object, which has its own", field=name
                )
            if self.model_source is None:
                raise ConfigError(
                    f"say in model_source of which model '{self.engine}' is made", field=name
                )
        self._check_task()
        older = parse_options(Experimental, self.experimental, "experimental")
        if self.max_tasks_in_flight_per_actor is None:
            most = older.max_tasks_in_flight_per_actor
            force_setattr(self, "max_tasks_in_flight_per_actor", most)
        if self.placement_group_config is not None:
            parse_options(
                PlacementGroupConfig, self.placement_group_config, "placement_group_config"
            )

    def _check_task(self) -> None:
        """The task belongs to the processor, so it is no option of its engine."""
        options = dict(self.engine_kwargs)
        task = options.pop(self.task_key, None)
        if task not in (None, self.task_type):
            raise ConfigError(
                f"the processor's task_type says what it does, which is '{self.task_type}'",
                field=f"engine_kwargs.{self.task_key}",
                value=task,
            )
        force_setattr(self, "engine_kwargs", options)


class OpenVINOEngineProcessorConfig(EngineProcessorConfig, kw_only=True):
    """A processor that asks a model on the embedded OpenVINO engine.

    `model_source` is "demo", a directory or file, or a hub id; `engine_kwargs` are that engine's
    options (docs/engines.md). The other fields are those of `EngineProcessorConfig`.
    """

    engine_name = "openvino"


class vLLMEngineProcessorConfig(EngineProcessorConfig, kw_only=True):
    """A processor that asks a model on vLLM.

    `model_source` is what vLLM loads, or "demo"; `engine_kwargs` are vLLM's engine arguments under
    their Python names. The other fields are those of `EngineProcessorConfig`.
    """

    engine_name = "vllm"
    task_key = "task_type"


class SGLangEngineProcessorConfig(EngineProcessorConfig, kw_only=True):
    """A processor that asks a model on SGLang.

    `model_source` is what SGLang loads; `engine_kwargs` are its server arguments under their Python
    names. The other fields are those of `EngineProcessorConfig`.
    """

    engine_name = "sglang"
    task_key = "task"


class ServeDeploymentProcessorConfig(ProcessorConfig, kw_only=True):
    """Sends rows to a model that is served already: `method` and `request_kwargs` of each row,
    `dtype` naming the type of its request.

    On one machine `app_name` and `deployment_name` name an engine or handle of this process
    (`penstock.engines.registry`), on Ray a Serve deployment. `dtype_mapping` maps the names in
    `dtype` to classes that check the request. Any method of any deployment can be called; what it
    returns, a mapping or an object with fields, becomes columns. With `rows_per_call` above 1 a
    method gets lists of up to so many requests, and returns the list of their answers.
    """

    deployment_name: str
    app_name: str = "default"
    dtype_mapping: dict[str, Any] | None = None
    rows_per_call: Positive = 1
    request_timeout_s: Seconds | None = None

    def __post_init__(self) -> None:
        ProcessorConfig.__post_init__(self)
        for name, kind in (self.dtype_mapping or {}).items():
            if not callable(kind):
                raise ConfigError("must be a class", field=f"dtype_mapping.{name}", value=kind)


C = TypeVar("C", bound=StageConfig)


def stage_config(kind: type[C], given: Any, where: str) -> C | None:
    """The configuration in a stage field: a bool, a mapping, or the configuration itself; None if
    it is switched off.

    Raises `ConfigError`.
    """
    if isinstance(given, bool):
        return kind() if given else None
    if isinstance(given, Mapping):
        try:
            given = kind(**given)
        except ConfigError as error:
            raise ConfigError(str(error), field=where, value=given) from None
    if not isinstance(given, kind):
        raise ConfigError(
            f"must be true, false, a mapping or a {kind.__name__}, not a {type(given).__name__}",
            field=where,
        )
    return given if given.enabled else None
