"""Whether the devices of this machine can do what the options ask, known before a model loads."""

from __future__ import annotations

import openvino as ov

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import EngineStartError

_CHOOSE = ("AUTO", "HETERO", "BATCH")
"""Names in front of others: `AUTO:GPU,CPU`. MULTI keeps no cache that a pipeline could use."""
_MUST_LIST = ("HETERO", "BATCH")
_KV_OPTION = "kv_cache_precision"
_KV_PROPERTIES = ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION")


def check_devices(options: OpenVINOOptions) -> None:
    """Raise `EngineStartError` for a device that is not here, or a precision that it has not."""
    core = ov.Core()
    present = core.available_devices
    check_device("device", options.device, present)
    if options.draft_device is not None:
        check_device("draft_device", options.draft_device, present)
    if options.device == "CPU":
        default = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        check_precision(options, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), default)


def check_device(option: str, device: str, present: list[str]) -> None:
    """`present`: OpenVINO's names of the devices found, such as `CPU` or `GPU.0`."""
    first, listing, names = device.partition(":")
    here = f"this machine has {', '.join(present)}"
    if first in _CHOOSE:
        if not names and (listing or first in _MUST_LIST):
            raise EngineStartError(
                f"{option} '{device}' names no devices, as in {first}:{present[0]}; {here}"
            )
        wanted = [name.partition("(")[0].removeprefix("-") for name in names.split(",") if name]
    else:
        wanted = [device]
    for name in wanted:
        if not any(one == name or one.partition(".")[0] == name for one in present):
            choosing = ", or a choice of them such as AUTO" if first not in _CHOOSE else ""
            raise EngineStartError(f"{option}: there is no device '{name}'; {here}{choosing}")


def check_precision(options: OpenVINOOptions, capabilities: list[str], default: str) -> None:
    """The CPU keeps its cache in 8 or 4 bits, in 16 bits, or in the precision it computes in.

    `capabilities`: what the CPU has kernels for, as OpenVINO names it (`FP32`, `BF16`, `FP16`).
    `default`: the precision that it computes in where none is asked for.
    """
    given = {name.upper(): str(value) for name, value in options.properties.items()}
    asked = given.get("INFERENCE_PRECISION_HINT", options.inference_precision)
    needs = {"bf16": "BF16", "f16": "FP16"}.get(asked or "")
    if needs is not None and needs not in capabilities:
        raise EngineStartError(
            f"inference_precision '{asked}': this CPU does not compute in it; leave it out, which"
            f" gives {default}, or set f32"
        )
    computes = asked or default
    asked_kv = {_KV_OPTION: options.kv_cache_precision} | {
        f"properties.{name}": given[name] for name in _KV_PROPERTIES if name in given
    }
    takes = ", ".join(dict.fromkeys((computes, "f16", "u8")))
    for name, value in asked_kv.items():
        if value in ("f32", "bf16") and value != computes:
            other = "; f32 needs inference_precision f32" if value == "f32" else ""
            raise EngineStartError(
                f"{name} '{value}': the CPU computes in {computes}, so its cache is in {takes} or"
                f" u4{other}"
            )
