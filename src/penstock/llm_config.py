"""`LLMConfig`: one model, how to load it, and how to serve it. Field names are Ray Serve LLM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from penstock.config import Options, parse_options
from penstock.errors import ConfigError

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Bundle = dict[str, Annotated[float, Meta(ge=0)]]

DEFAULT_START_TIMEOUT_S = 600.0
DEFAULT_WAITING = 1024
DEFAULT_PREFILL_TIMEOUT_S = 30.0


class CloudMirrorConfig(Options, kw_only=True):
    """A bucket that mirrors a model: `bucket_uri` holds the model's files, `extra_files` others."""

    bucket_uri: str | None = None
    extra_files: list[dict[str, str]] = field(default_factory=list)


class ModelLoadingConfig(Options, kw_only=True):
    """Which model. `model_id` is the name that requests use; `model_source` is what the engine
    loads: "demo", a directory, a file, or a hub id (default: `model_id`). `tokenizer_source` is the
    same for the tokenizer (default: the model's own). `aliases` are further names for requests;
    answers have the first name.
    """

    model_id: Annotated[str, Meta(min_length=1)]
    model_source: str | CloudMirrorConfig | None = None
    tokenizer_source: str | None = None
    aliases: list[str] = field(default_factory=list)


class AcceleratorConfig(Options, kw_only=True):
    """The kind of device. `topology` is a TPU slice such as "2x2"."""

    kind: Literal["cpu", "gpu", "tpu"] | None = None
    topology: str | None = None


class PlacementGroupConfig(Options, kw_only=True):
    """Resources of the engine's workers. `bundles` lists them; `bundle_per_worker` is one
    worker's, repeated tensor × pipeline parallel size times. Exactly one is set. `strategy`
    defaults to "PACK".
    """

    bundle_per_worker: Bundle | None = None
    bundles: list[Bundle] | None = None
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"

    def __post_init__(self) -> None:
        if (self.bundle_per_worker is None) == (self.bundles is None):
            raise ConfigError(
                "give exactly one of bundle_per_worker and bundles", field="placement_group_config"
            )


class LoraConfig(Options, kw_only=True):
    """LoRA adapters. `dynamic_lora_loading_path` is a directory or URL with one subdirectory an
    adapter; `adapters` maps the names of further adapters to directories or URLs. At most
    `max_num_adapters_per_replica` (16) are loaded at once. A download may take `download_timeout_s`
    seconds (30; None for no limit) and has `max_download_tries` tries (3).
    """

    dynamic_lora_loading_path: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    max_num_adapters_per_replica: Positive = 16
    download_timeout_s: Seconds | None = 30.0
    max_download_tries: Positive = 3


class AutoscalingConfig(Options, kw_only=True):
    """How many replicas, and when. With `min_replicas` 0 the model loads on its first request,
    unless `initial_replicas` is 1, and unloads after `downscale_to_zero_delay_s` idle seconds
    (default: `downscale_delay_s`, 600). The other fields are for runtimes with several replicas.
    """

    min_replicas: Count = 1
    initial_replicas: Count | None = None
    max_replicas: Positive = 1
    target_ongoing_requests: Annotated[float, Meta(gt=0)] | None = None
    target_num_ongoing_requests_per_replica: Annotated[float, Meta(gt=0)] | None = None
    metrics_interval_s: Seconds | None = None
    look_back_period_s: Seconds | None = None
    smoothing_factor: float | None = None
    upscale_smoothing_factor: float | None = None
    downscale_smoothing_factor: float | None = None
    upscaling_factor: float | None = None
    downscaling_factor: float | None = None
    upscale_delay_s: Seconds = 30.0
    downscale_delay_s: Seconds = 600.0
    downscale_to_zero_delay_s: Seconds | None = None
    aggregation_function: str | None = None
    policy: Any = None

    def __post_init__(self) -> None:
        where = "deployment_config.autoscaling_config"
        if self.min_replicas > self.max_replicas:
            raise ConfigError(
                f"min_replicas ({self.min_replicas}) is more than max_replicas"
                f" ({self.max_replicas})",
                field=f"{where}.min_replicas",
            )
        if (
            self.initial_replicas is not None
            and not self.min_replicas <= self.initial_replicas <= self.max_replicas
        ):
            raise ConfigError(
                "must lie between min_replicas and max_replicas", field=f"{where}.initial_replicas"
            )


class DeploymentConfig(Options, kw_only=True):
    """How a replica is deployed; the names are Ray Serve's. Penstock itself reads
    `autoscaling_config`, `max_ongoing_requests` (concurrent requests to the engine; default: a
    tenth more than its slots), `max_queued_requests` (waiting requests; default 1,024, -1 for no
    limit), `graceful_shutdown_timeout_s` (seconds that a stop waits for requests under way; 20) and
    `ray_actor_options["memory"]` (bytes of the loaded model, for the memory budget).
    """

    name: str | None = None
    num_replicas: int | Literal["auto"] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    max_ongoing_requests: Positive | None = None
    max_queued_requests: Annotated[int, Meta(ge=-1)] | None = None
    ray_actor_options: dict[str, Any] = field(default_factory=dict)
    max_replicas_per_node: Positive | None = None
    user_config: Any = None
    graceful_shutdown_wait_loop_s: Seconds | None = None
    graceful_shutdown_timeout_s: Seconds = 20.0
    health_check_period_s: Seconds | None = None
    health_check_timeout_s: Seconds | None = None
    max_constructor_retry_count: Positive | None = None
    logging_config: Any = None
    request_router_config: Any = None
    gang_scheduling_config: Any = None
    backpressure_config: Any = None
    rolling_update_percentage: float | None = None
    max_surge_percent: Annotated[int, Meta(ge=0)] | None = None
    version: str | None = None
    placement_group_bundles: Any = None
    placement_group_strategy: Any = None

    def __post_init__(self) -> None:
        for name in ("placement_group_bundles", "placement_group_strategy"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    "the bundles follow from the engine's parallelism, so a second statement could"
                    " only disagree",
                    field=f"deployment_config.{name}",
                    hint="Use placement_group_config.",
                )


class CallbackConfig(Options, kw_only=True):
    """Hooks around the start of a node: an import path or class, its arguments, and whether its
    errors abort the start.
    """

    callback_class: Any = None
    callback_kwargs: dict[str, Any] = field(default_factory=dict)
    raise_error_on_callback: bool = True


class LLMConfig(Options, kw_only=True):
    """One model with all options for loading and serving it. Nested parts may be mappings.

    `llm_engine` is "openvino" by default. `engine_kwargs` are the engine's own options. With
    `deterministic` the same request gets the same answer, whatever runs beside it; this costs
    speed, and an engine without this guarantee refuses it. `server_cls` replaces `LLMServer` (a
    class or an import path). `experimental_configs` are free; known are
    `stream_batching_interval_ms` (later deltas of a stream are joined for this time; 0) and
    `start_timeout_s` (600). With `prefill_config` this model decodes, and engines of that
    configuration compute its prompts; see `serve.prefill_decode`. Raises `ConfigError` for an
    unknown or wrong field.
    """

    model_loading_config: ModelLoadingConfig
    llm_engine: str = "openvino"
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    accelerator_type: str | None = None
    accelerator_config: AcceleratorConfig | None = None
    placement_group_config: PlacementGroupConfig | None = None
    lora_config: LoraConfig | None = None
    deployment_config: DeploymentConfig = field(default_factory=DeploymentConfig)
    runtime_env: dict[str, Any] | None = None
    server_cls: Any = None
    callback_config: CallbackConfig | None = None
    experimental_configs: dict[str, Any] = field(default_factory=dict)
    log_engine_metrics: bool = True
    prefill_config: LLMConfig | None = None

    def __post_init__(self) -> None:
        for name in ("model", "served_model_name"):
            if name in self.engine_kwargs:
                raise ConfigError(
                    "is set in model_loading_config",
                    field=f"engine_kwargs.{name}",
                    value=self.engine_kwargs[name],
                    hint="Use model_id for the name and model_source for the files.",
                )
        # Checked now rather than on first use.
        _ = (
            self.stream_batching_interval_s,
            self.start_timeout_s,
            self.prefill_timeout_s,
            self.prefill_min_tokens,
        )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LLMConfig:
        """Read a mapping, as from a file. Raises `ConfigError`."""
        return parse_options(cls, given)

    @property
    def model_id(self) -> str:
        """The name of the model in requests."""
        return self.model_loading_config.model_id

    @property
    def model_source(self) -> str:
        """The source that the engine loads. Raises `ConfigError` for a bucket mirror."""
        source = self.model_loading_config.model_source
        if isinstance(source, CloudMirrorConfig):
            raise ConfigError(
                "loading a model from a bucket is not supported",
                field="model_loading_config.model_source",
                hint="Copy the model to a directory and name that.",
            )
        return source or self.model_id

    @property
    def engine_name(self) -> str:
        """The engine's name in the table of engines: Ray's "vLLM" is "vllm"."""
        return self.llm_engine.lower()

    @property
    def autoscaling(self) -> AutoscalingConfig:
        return self.deployment_config.autoscaling_config or AutoscalingConfig()

    @property
    def max_waiting(self) -> int | None:
        """The bound of the queue; None for no limit."""
        given = self.deployment_config.max_queued_requests
        return DEFAULT_WAITING if given is None else None if given < 0 else given

    @property
    def stream_batching_interval_s(self) -> float:
        """Seconds for which later deltas of a stream are joined. With 0 only deltas that the caller
        has not yet taken are joined.
        """
        return self._experimental("stream_batching_interval_ms", 0.0) / 1000

    @property
    def start_timeout_s(self) -> float:
        """Seconds within which the engine must start."""
        return self._experimental("start_timeout_s", DEFAULT_START_TIMEOUT_S)

    @property
    def prefill_timeout_s(self) -> float:
        """Seconds that the prefill side may take for a prompt; after that this side computes it."""
        return self._experimental("prefill_timeout_s", DEFAULT_PREFILL_TIMEOUT_S)

    @property
    def prefill_min_tokens(self) -> float:
        """Prompts with fewer tokens are not worth a transfer."""
        return self._experimental("prefill_min_tokens", 0)

    def _experimental(self, name: str, default: float) -> float:
        value = self.experimental_configs.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(
                f"must be a number of at least 0, got {value!r}",
                field=f"experimental_configs.{name}",
                value=value,
            )
        return float(value)
