"""`LLMConfig`: one model, how to load it, and how to serve it. Field names are Ray Serve LLM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr

from penstock import env
from penstock.config import Count, Options, Pause, Positive, Seconds, parse_options
from penstock.errors import ConfigError, nearest
from penstock.llm_config.batch import BatchConfig
from penstock.llm_config.engine_choice import ENGINE_NAMES, chosen_engine, unknown_engine
from penstock.llm_config.engine_config import (
    EngineConfig,
    Kind,
    accelerator_name,
    kind_of,
    kind_of_bundles,
)
from penstock.llm_config.items import Items
from penstock.llm_config.parts import (
    MOST_REPLICAS,
    Experiments,
    Replicas,
    check_mappings,
    check_names,
)

Above = Annotated[float, Meta(gt=0)]
Bundle = dict[str, Annotated[float, Meta(ge=0)]]

DEFAULT_START_TIMEOUT_S = 600.0
DEFAULT_WAITING = 1024
DEFAULT_PREFILL_TIMEOUT_S = 30.0


class ExtraFiles(Options, kw_only=True):
    """Files of a bucket, and the local directory that they are copied to."""

    bucket_uri: str
    destination_path: str


class CloudMirrorConfig(Options, kw_only=True):
    """A bucket that mirrors a model: `bucket_uri` holds the model's files, `extra_files` others.
    URLs are those of fsspec: `s3://`, `gs://`, `abfss://`, `hf://` and more.
    """

    bucket_uri: str | None = None
    extra_files: list[ExtraFiles] = field(default_factory=list)

    def __post_init__(self) -> None:
        uris = [("bucket_uri", self.bucket_uri)]
        uris += [(f"extra_files[{n}]", part.bucket_uri) for n, part in enumerate(self.extra_files)]
        for name, uri in uris:
            if uri is not None and "://" not in uri:
                raise ConfigError(
                    "must be the URL of a bucket, such as s3://bucket/model",
                    field=f"model_loading_config.model_source.{name}",
                    value=uri,
                )

    @property
    def storage_type(self) -> str | None:
        """The scheme of the URL; "gcs" for gs://."""
        if self.bucket_uri is None:
            return None
        scheme = self.bucket_uri.partition("://")[0]
        return "gcs" if scheme == "gs" else scheme


class ModelLoadingConfig(Options, kw_only=True):
    """Which model. `model_id` is the name that requests use; `model_source` is what the engine
    loads: "demo", a directory, a file, a hub id (default: `model_id`), or a bucket, as a URL or a
    `CloudMirrorConfig`, whose files are copied into the cache first. `tokenizer_source` is the
    same for the tokenizer (default: the model's own). `aliases` are further names for requests;
    answers have the first name.
    """

    model_id: Annotated[str, Meta(min_length=1)]
    model_source: str | CloudMirrorConfig | None = None
    tokenizer_source: str | None = None
    aliases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_names([self.model_id, *self.aliases])

    @property
    def mirror(self) -> CloudMirrorConfig | None:
        """The bucket that the model comes from, if it comes from one."""
        if isinstance(self.model_source, CloudMirrorConfig):
            return self.model_source
        if self.model_source is not None and "://" in self.model_source:
            return CloudMirrorConfig(bucket_uri=self.model_source)
        return None


class AcceleratorConfig(Options, kw_only=True):
    """The kind of device. `topology` is a TPU slice such as "2x2"."""

    kind: Kind
    topology: str | None = None

    def __post_init__(self) -> None:
        if self.topology is not None and self.kind != "tpu":
            raise ConfigError(
                f"is a slice of TPUs, and the kind is {self.kind}",
                field="accelerator_config.topology",
                value=self.topology,
            )


class PlacementGroupConfig(Items, kw_only=True):
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
        if self.bundles == []:
            raise ConfigError(
                "must hold at least one bundle", field="placement_group_config.bundles"
            )

    @property
    def kind(self) -> Kind:
        """The kind of device that the bundles reserve."""
        return kind_of_bundles(self.bundles or [self.bundle_per_worker or {}])


class LoraConfig(Options, kw_only=True):
    """LoRA adapters. `dynamic_lora_loading_path` is a directory or URL with one subdirectory an
    adapter; `adapters` maps the names of further adapters to directories or URLs. At most
    `max_num_adapters_per_replica` (16) are loaded at once. A download may take `download_timeout_s`
    seconds (30; None for no limit) and has `max_download_tries` tries (3).
    """

    dynamic_lora_loading_path: Annotated[str, Meta(min_length=1)] | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    max_num_adapters_per_replica: Positive = 16
    download_timeout_s: Pause | None = field(default_factory=env.adapter_timeout_s)
    max_download_tries: Positive = field(default_factory=env.adapter_tries)


AUTO_MOST = 100
"""Ray Serve's bound on replicas for `num_replicas` "auto"."""


class AutoscalingConfig(Items, kw_only=True):
    """How many replicas, and when. `max_replicas` is 1 if it is left out, and 100 beside
    `num_replicas` "auto". With `min_replicas` 0 the model loads on its first request,
    unless `initial_replicas` is 1, and unloads after `downscale_to_zero_delay_s` idle seconds
    (default: `downscale_delay_s`, 600). The other fields are for runtimes with several replicas.
    """

    min_replicas: Count = 1
    initial_replicas: Count | None = None
    max_replicas: Replicas | None = None
    target_ongoing_requests: Above | None = None
    target_num_ongoing_requests_per_replica: Above | None = None
    metrics_interval_s: Seconds | None = None
    look_back_period_s: Pause | None = None
    smoothing_factor: Above | None = None
    upscale_smoothing_factor: Above | None = None
    downscale_smoothing_factor: Above | None = None
    upscaling_factor: Above | None = None
    downscaling_factor: Above | None = None
    upscale_delay_s: Pause = 30.0
    downscale_delay_s: Pause = 600.0
    downscale_to_zero_delay_s: Pause | None = None
    aggregation_function: Literal["mean", "max", "min"] | None = None
    policy: Any = None

    def __post_init__(self) -> None:
        if self.max_replicas is not None:
            self.check(self.max_replicas)

    def check(self, most: int) -> None:
        """Raises `ConfigError` if `most` are fewer replicas than these ask for."""
        where = "deployment_config.autoscaling_config"
        if self.min_replicas > most:
            raise ConfigError(
                f"min_replicas ({self.min_replicas}) is more than max_replicas ({most})",
                field=f"{where}.min_replicas",
            )
        initial = self.initial_replicas
        if initial is not None and not self.min_replicas <= initial <= most:
            raise ConfigError(
                "must lie between min_replicas and max_replicas", field=f"{where}.initial_replicas"
            )


class DeploymentConfig(Items, kw_only=True):
    """How a replica is deployed; the names are Ray Serve's. Penstock itself reads
    `autoscaling_config`, `max_ongoing_requests` (concurrent requests to the engine; default: a
    tenth more than its slots), `max_queued_requests` (waiting requests; default 1,024, -1 for no
    limit), `graceful_shutdown_timeout_s` (seconds that a stop waits for requests under way; 20) and
    `ray_actor_options["memory"]` (bytes of the loaded model, for the memory budget).
    """

    name: str | None = None
    num_replicas: Annotated[int, Meta(ge=0, le=MOST_REPLICAS)] | Literal["auto"] | None = None
    autoscaling_config: AutoscalingConfig | None = None
    max_ongoing_requests: Positive | None = field(default_factory=env.max_ongoing_requests)
    max_queued_requests: Annotated[int, Meta(ge=-1)] | None = None
    ray_actor_options: dict[str, Any] = field(default_factory=dict)
    max_replicas_per_node: Positive | None = None
    user_config: Any = None
    graceful_shutdown_wait_loop_s: Pause | None = None
    graceful_shutdown_timeout_s: Pause = 20.0
    health_check_period_s: Seconds | None = field(default_factory=env.health_check_period_s)
    health_check_timeout_s: Seconds | None = field(default_factory=env.health_check_timeout_s)
    max_constructor_retry_count: Positive | None = None
    logging_config: Any = None
    request_router_config: Any = None
    gang_scheduling_config: Any = None
    backpressure_config: Any = None
    rolling_update_percentage: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_surge_percent: Count | None = None
    version: str | None = None
    placement_group_bundles: Any = None
    placement_group_strategy: Any = None

    def __post_init__(self) -> None:
        if self.num_replicas == 0:
            raise ConfigError(
                "must be at least 1, not 0",
                field="deployment_config.num_replicas",
                hint="With autoscaling_config.min_replicas 0 a model starts when it is asked.",
            )
        for name in ("placement_group_bundles", "placement_group_strategy"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    "the bundles follow from the engine's parallelism, so a second statement could"
                    " only disagree",
                    field=f"deployment_config.{name}",
                    hint="Use placement_group_config.",
                )
        check_mappings(self.ray_actor_options, self.request_router_config)
        _ = self.replica_counts  # checked now rather than on first use

    @property
    def replica_counts(self) -> tuple[int, int]:
        """The fewest and the most replicas. Raises `ConfigError`."""
        auto, scaling = self.num_replicas == "auto", self.autoscaling_config
        if scaling is None and not auto:
            return (int(self.num_replicas or 1),) * 2
        scaling = scaling or AutoscalingConfig()
        most = scaling.max_replicas or (AUTO_MOST if auto else 1)
        scaling.check(most)
        return scaling.min_replicas, most

    @property
    def is_unbounded(self) -> bool:
        """Whether only the bound of "auto" limits the replicas."""
        return self.num_replicas == "auto" and self.replica_counts[1] == AUTO_MOST


class CallbackConfig(Options, kw_only=True):
    """Hooks around the start of a node: an import path or class, its arguments, and whether its
    errors abort the start.
    """

    callback_class: Any = None
    callback_kwargs: dict[str, Any] = field(default_factory=dict)
    raise_error_on_callback: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.callback_class, str | type | None):
            raise ConfigError(
                "must be a class or its import path",
                field="callback_config.callback_class",
                value=self.callback_class,
            )


PORT_BASE = "_PORT_BASE"
"""What names of first ports in `experimental_configs` end with."""
NOT_NEEDED = {
    "_prewarm_prefill_decode": "the first request makes the connection of the two sides",
    "pd_tokenize_once": "each side encodes the prompt; that is cheap beside computing it",
    "KV_INDEXER_THREADS": "the kv_aware policy has no threads of its own",
    "dp_size_per_node": "a data-parallel group is one replica, on one machine",
}
"""Ray's keys of `experimental_configs` that change no answer, and why nothing is done about them.
"""


class LLMConfig(Options, kw_only=True):
    """One model with all options for loading and serving it. Nested parts may be mappings.

    `llm_engine` None is that of `server_cls`, where a class is for one engine; else "vllm" where
    the configuration is meant for it (`import_path` is Ray's,
    `engine_kwargs` have an option of vLLM's, or an accelerator is asked for), else "openvino";
    `engine_reason` says why. `import_path` is that of the application of a Serve file.
    `engine_kwargs` are the engine's own options. `accelerator_type` is a name of Ray's.
    With `deterministic` the same request gets the same answer, whatever runs beside it; this costs
    speed, and an engine without this guarantee refuses it. `server_cls` replaces `LLMServer` (a
    class or an import path). `experimental_configs`: `stream_batching_interval_ms` (later deltas of
    a stream are joined for this time; 0), `start_timeout_s` (600), `num_ingress_replicas` (on Ray),
    `prefill_timeout_s`, `prefill_min_tokens`, and first ports (`NIXL_SIDE_CHANNEL_PORT_BASE`).
    `batch` says what batch work may cost online requests. With `prefill_config` this model
    decodes, and engines of that configuration compute its prompts; see `serve.prefill_decode`.
    Raises `ConfigError` for an unknown or wrong field.
    """

    model_loading_config: ModelLoadingConfig
    llm_engine: str | None = None
    engine_kwargs: dict[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    accelerator_type: str | None = None
    accelerator_config: AcceleratorConfig | None = None
    placement_group_config: PlacementGroupConfig | None = None
    lora_config: LoraConfig | None = None
    deployment_config: DeploymentConfig = field(default_factory=DeploymentConfig)
    runtime_env: dict[str, Any] | None = None
    server_cls: Any = None
    callback_config: CallbackConfig | None = field(default_factory=CallbackConfig)
    experimental_configs: dict[str, Any] = field(default_factory=dict)
    log_engine_metrics: bool | None = True
    prefill_config: LLMConfig | None = None
    import_path: str | None = None
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        _check_engine_kwargs(self.engine_kwargs)
        if self.engine_name not in ENGINE_NAMES:
            raise unknown_engine(self.engine_name, job=False)
        if self.accelerator_type is not None:
            force_setattr(self, "accelerator_type", accelerator_name(self.accelerator_type))
        self._check_accelerator()
        self._check_experiments()
        _ = self.start_timeout_s, self.stream_batching_interval_s  # the environment is checked too

    def _check_accelerator(self) -> None:
        name, given = self.accelerator_type, self.accelerator_config
        if name is None:
            if given is not None and given.topology is not None:
                raise ConfigError(
                    "is needed beside a topology, such as TPU-V6E", field="accelerator_type"
                )
            return
        kind = self.accelerator_kind
        if kind != kind_of(name):
            where = "accelerator_config" if given is not None else "placement_group_config"
            raise ConfigError(
                f"'{name}' is a {kind_of(name).upper()}, and {where} asks for {str(kind).upper()}s",
                field="accelerator_type",
                value=name,
            )

    def _check_experiments(self) -> None:
        known, given = Experiments.__struct_fields__, self.experimental_configs
        for name, value in given.items():
            if name in known or name in NOT_NEEDED or name.endswith(PORT_BASE):
                continue
            hint = nearest(name, known)
            if name == "num_router_replicas":  # its name in earlier versions of Ray
                hint = "It is num_ingress_replicas now."
            raise ConfigError(
                f"unknown key '{name}'",
                field=f"experimental_configs.{name}",
                value=value,
                hint=hint,
            )
        wanted = {name: given[name] for name in known if name in given}
        numbers = parse_options(Experiments, wanted, "experimental_configs")
        read = {name: getattr(numbers, name) for name in wanted}
        force_setattr(self, "experimental_configs", {**given, **read})

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> LLMConfig:
        """Read a mapping, as from a file. Raises `ConfigError`."""
        return parse_options(cls, given)

    def update_engine_kwargs(self, **kwargs: Any) -> None:
        """Change options of the engine, which has not been made yet. Raises `ConfigError`."""
        _check_engine_kwargs(kwargs)
        self.engine_kwargs.update(kwargs)

    def get_engine_config(self) -> EngineConfig:
        """What the engine needs of this: its options, and the bundles of its workers."""
        return EngineConfig.from_llm_config(self)

    @property
    def model_id(self) -> str:
        """The name of the model in requests."""
        return self.model_loading_config.model_id

    @property
    def model_source(self) -> str:
        """The source that the engine loads; the URL of a bucket."""
        source = self.model_loading_config.model_source
        if isinstance(source, CloudMirrorConfig):
            source = source.bucket_uri
        return source or self.model_id

    @property
    def max_request_context_length(self) -> int | None:
        """`engine_kwargs.max_model_len`, in tokens; None where it is no number."""
        length = self.engine_kwargs.get("max_model_len")
        return length if isinstance(length, int) else None

    @property
    def accelerator_kind(self) -> Kind | None:
        """The kind of device that is asked for, by any field; None where none asks."""
        if self.accelerator_config is not None:
            return self.accelerator_config.kind
        if self.placement_group_config is not None:
            return self.placement_group_config.kind
        return None if self.accelerator_type is None else kind_of(self.accelerator_type)

    @property
    def engine_name(self) -> str:
        """The engine's name in the table of engines: Ray's "vLLM" is "vllm"."""
        return chosen_engine(self)[0]

    @property
    def engine_reason(self) -> str:
        """Why it is this engine."""
        return chosen_engine(self)[1]

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
        default = env.stream_interval_ms()
        return self._experiment("stream_batching_interval_ms", default) / 1000

    @property
    def start_timeout_s(self) -> float:
        """Seconds within which the engine must start."""
        return self._experiment("start_timeout_s", env.start_timeout_s(DEFAULT_START_TIMEOUT_S))

    @property
    def prefill_timeout_s(self) -> float:
        """Seconds that the prefill side may take for a prompt; after that this side computes it."""
        return self._experiment("prefill_timeout_s", DEFAULT_PREFILL_TIMEOUT_S)

    @property
    def prefill_min_tokens(self) -> float:
        """Prompts with fewer tokens are not worth a transfer."""
        return self._experiment("prefill_min_tokens", 0)

    @property
    def num_ingress_replicas(self) -> int | None:
        """Replicas of the ingress on Ray that this model asks for; the most of all models count."""
        return int(self._experiment("num_ingress_replicas", 0)) or None

    def _experiment(self, name: str, default: float) -> float:
        value: float | None = self.experimental_configs.get(name)
        return default if value is None else value


def _check_engine_kwargs(given: Mapping[str, Any]) -> None:
    for name in ("model", "served_model_name"):
        if name in given:
            raise ConfigError(
                "is set in model_loading_config",
                field=f"engine_kwargs.{name}",
                value=given[name],
                hint="Use model_id for the name and model_source for the files.",
            )
