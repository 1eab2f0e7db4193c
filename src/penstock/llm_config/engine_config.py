"""What an engine's workers reserve: arithmetic on bundles, without a cluster; and accelerators by
the names that Ray gives them, with the kind of device that each one is.

A bundle maps a resource ("CPU", "GPU", "memory" in bytes, or a custom one) to an amount.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from penstock.errors import ConfigError, nearest

if TYPE_CHECKING:
    from penstock.llm_config.model import (
        CloudMirrorConfig,
        LLMConfig,
        PlacementGroupConfig,
    )

Kind = Literal["cpu", "gpu", "tpu"]

_TPUS = frozenset(
    {
        *("TPU-V2", "TPU-V3", "TPU-V4", "TPU-V5P", "TPU-V5LITEPOD", "TPU-V6E", "TPU-V7X"),
    }
)
NAMES = _TPUS | frozenset(
    {
        *("V100", "P100", "T4", "P4", "K80", "A10G", "L4", "L40S", "A100", "A100-40G", "A100-80G"),
        *("H100", "H200", "H20", "B200", "B300", "GB200", "GB300", "RTX-PRO-6000"),
        *("Intel-GPU-Max-1550", "Intel-GPU-Max-1100", "Intel-GAUDI"),
        *("AMD-Instinct-MI100", "AMD-Instinct-MI250X", "AMD-Instinct-MI250X-MI250"),
        *("AMD-Instinct-MI210", "AMD-Instinct-MI300A", "AMD-Instinct-MI300X-OAM"),
        *("AMD-Instinct-MI300X-HF", "AMD-Instinct-MI308X", "AMD-Instinct-MI325X-OAM"),
        *("AMD-Instinct-MI350X-OAM", "AMD-Instinct-MI355X-OAM"),
        *("AMD-Radeon-R9-200-HD-7900", "AMD-Radeon-HD-7900", "aws-neuron-core"),
        *("Ascend910B", "Ascend910B4", "MXC500", "MXC550", "FURIOSA_RNGD"),
        *("M1", "M1-Pro", "M1-Max", "M1-Ultra", "M2", "M2-Pro", "M2-Max", "M2-Ultra"),
        *("M3", "M3-Pro", "M3-Max", "Apple-Silicon", "MOBILINT_ARIES", "MOBILINT_REGULUS"),
    }
)
"""The values of `accelerator_type`, as of Ray 2.60. A node's marker has the same name."""
_OTHER_NAMES = {"A10": "A10G"}


def accelerator_name(given: str) -> str:
    """The name that Ray has for an accelerator: "A10" is "A10G". Raises `ConfigError` for an
    unknown one.
    """
    name = _OTHER_NAMES.get(given, given)
    if name not in NAMES:
        raise ConfigError(
            f"there is no accelerator '{given}'",
            field="accelerator_type",
            value=given,
            hint=nearest(given.replace("_", "-"), NAMES),
        )
    return name


def kind_of(name: str) -> Kind:
    """The kind of an accelerator; all but TPUs count as GPUs."""
    return "tpu" if name in _TPUS else "gpu"


def kind_of_bundles(bundles: Iterable[Mapping[str, float]]) -> Kind:
    """The kind of device that bundles reserve."""
    held = {name for bundle in bundles for name, amount in bundle.items() if amount > 0}
    return "tpu" if "TPU" in held else "gpu" if "GPU" in held else "cpu"


Bundle = dict[str, float]

GPU_ENGINES = frozenset({"vllm", "sglang"})
ACCELERATOR_SHARE = 0.001
"""Each worker's share of a machine's `accelerator_type:NAME` marker, which all workers share."""


class Parallelism(Struct, frozen=True):
    """One engine's workers: `data` ranks of `pipeline` stages of `tensor` shards."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def workers(self) -> int:
        return self.tensor * self.pipeline * self.data


def parallelism(engine_kwargs: Mapping[str, Any]) -> Parallelism:
    """The sizes in `engine_kwargs`, under vLLM's or SGLang's names. Raises `ConfigError` for a
    value that is no number.
    """
    return Parallelism(
        _parallel(engine_kwargs, "tensor_parallel_size", "tp_size"),
        _parallel(engine_kwargs, "pipeline_parallel_size", "pp_size"),
        _parallel(engine_kwargs, "data_parallel_size_local", "data_parallel_size", "dp_size"),
    )


def worker_bundles(
    engine: str,
    engine_kwargs: Mapping[str, Any],
    *,
    kind: Kind | None = None,
    accelerator_type: str | None = None,
    placement: PlacementGroupConfig | None = None,
) -> list[Bundle]:
    """One bundle a worker, each with the marker of the accelerator. Without `placement` it is one
    GPU, or one CPU for an engine without GPUs; `kind` says otherwise. Raises `ConfigError`.
    """
    workers = parallelism(engine_kwargs).workers
    if placement is None:
        device = (kind or ("gpu" if engine in GPU_ENGINES else "cpu")).upper()
        bundles = [{device: 1.0} for _ in range(workers)]
    elif placement.bundles is None:
        bundles = [dict(placement.bundle_per_worker or {}) for _ in range(workers)]
    else:
        bundles = [dict(bundle) for bundle in placement.bundles]
    if accelerator_type is not None:
        for bundle in bundles:
            bundle.setdefault(f"accelerator_type:{accelerator_type}", ACCELERATOR_SHARE)
    return bundles


@dataclass(kw_only=True)
class EngineConfig:
    """What of an `LLMConfig` its engine needs, with the names of Ray Serve LLM's."""

    llm_config: LLMConfig = field(repr=False)
    model_id: str
    mirror_config: CloudMirrorConfig | None
    engine: str
    accelerator_type: str | None
    accelerator_kind: Kind | None
    placement_group_config: PlacementGroupConfig | None
    runtime_env: dict[str, Any] | None
    engine_kwargs: dict[str, Any]

    @classmethod
    def from_llm_config(cls, llm_config: LLMConfig) -> EngineConfig:
        return cls(
            llm_config=llm_config,
            model_id=llm_config.model_id,
            mirror_config=llm_config.model_loading_config.mirror,
            engine=llm_config.engine_name,
            accelerator_type=llm_config.accelerator_type,
            accelerator_kind=llm_config.accelerator_kind,
            placement_group_config=llm_config.placement_group_config,
            runtime_env=llm_config.runtime_env,
            engine_kwargs=llm_config.engine_kwargs,
        )

    @property
    def hf_model_id(self) -> str | None:
        """The directory or hub id that is loaded, None where a bucket has it. A callback may set
        it, before the engine starts.
        """
        mirrored = self.llm_config.model_loading_config.mirror is not None
        return None if mirrored else self.llm_config.model_source

    @hf_model_id.setter
    def hf_model_id(self, source: str) -> None:
        self.llm_config.model_loading_config.model_source = source

    @property
    def actual_hf_model_id(self) -> str:
        return self.hf_model_id or self.model_id

    @property
    def trust_remote_code(self) -> bool:
        return bool(self.engine_kwargs.get("trust_remote_code", False))

    @property
    def tensor_parallel_degree(self) -> int:
        return parallelism(self.engine_kwargs).tensor

    @property
    def pipeline_parallel_degree(self) -> int:
        return parallelism(self.engine_kwargs).pipeline

    @property
    def num_devices(self) -> int:
        return parallelism(self.engine_kwargs).workers

    @property
    def placement_strategy(self) -> str:
        """How the bundles lie on machines; "PACK" by default."""
        placement = self.placement_group_config
        return "PACK" if placement is None else placement.strategy

    @property
    def placement_bundles(self) -> list[Bundle]:
        """One bundle a worker. Raises `ConfigError`."""
        return worker_bundles(
            self.engine,
            self.engine_kwargs,
            kind=self.accelerator_kind,
            accelerator_type=self.accelerator_type,
            placement=self.placement_group_config,
        )

    def get_initialization_kwargs(self) -> dict[str, Any]:
        """`engine_kwargs` with the model and the name that requests use."""
        return {
            **self.engine_kwargs,
            "model": self.actual_hf_model_id,
            "served_model_name": [self.model_id],
        }


def _parallel(engine_kwargs: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = engine_kwargs.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"must be a whole number of at least 1, got {value!r}",
                field=f"engine_kwargs.{name}",
            )
        return value
    return 1
