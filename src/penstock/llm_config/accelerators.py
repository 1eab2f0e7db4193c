"""Accelerators by the names that Ray gives them, and the kind of device that each one is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from penstock.errors import ConfigError, nearest

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


def accelerator_name(given: str, field: str = "accelerator_type") -> str:
    """The name that Ray has for an accelerator: "A10" is "A10G". Raises `ConfigError` for an
    unknown one.
    """
    name = _OTHER_NAMES.get(given, given)
    if name not in NAMES:
        raise ConfigError(
            f"there is no accelerator '{given}'",
            field=field,
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
