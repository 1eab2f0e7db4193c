import pytest

from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.worker import check_device, check_precision
from penstock.errors import EngineStartError


@pytest.mark.parametrize(
    "device",
    ["CPU", "GPU", "GPU.1", "AUTO", "AUTO:GPU,CPU", "AUTO:-GPU.0", "HETERO:CPU", "BATCH:GPU.0(8)"],
)
def test_devices_that_are_here(device: str) -> None:
    check_device("device", device, ["CPU", "GPU.0", "GPU.1"])


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("NPU", "device: there is no device 'NPU'; this machine has CPU, or a choice"),
        ("cpu", "no device 'cpu'"),
        ("CPU.0", "no device 'CPU.0'"),
        ("", "no device ''"),
        ("MULTI:CPU", "no device 'MULTI:CPU'"),
        ("HETERO:GPU,CPU", "no device 'GPU'; this machine has CPU"),
        ("HETERO", "names no devices, as in HETERO:CPU"),
        ("AUTO:", "names no devices"),
    ],
)
def test_a_device_that_is_missing(device: str, says: str) -> None:
    with pytest.raises(EngineStartError, match=says):
        check_device("device", device, ["CPU"])


@pytest.mark.parametrize(
    ("inference", "cache"),
    [(None, "bf16"), (None, "f16"), (None, "u8"), (None, "u4"), ("f32", "f32"), ("f32", "f16")],
)
def test_precisions_that_go_together(inference: str | None, cache: str) -> None:
    options = OpenVINOOptions(inference_precision=inference, kv_cache_precision=cache)  # type: ignore[arg-type]
    check_precision(options, ["FP32", "BF16"], "bf16")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"kv_cache_precision": "f32"},
            "kv_cache_precision 'f32': the CPU computes in bf16, so its cache is in bf16, f16, u8"
            " or u4; f32 needs inference_precision f32",
        ),
        (
            {"kv_cache_precision": "bf16", "inference_precision": "f32"},
            "kv_cache_precision 'bf16': the CPU computes in f32, so its cache is in f32, f16",
        ),
        ({"inference_precision": "f16"}, "inference_precision 'f16': this CPU does not compute"),
        ({"properties": {"kv_cache_precision": "f32"}}, "properties.KV_CACHE_PRECISION 'f32'"),
    ],
)
def test_precisions_that_the_cpu_has_not(options: dict, says: str) -> None:
    with pytest.raises(EngineStartError, match=says):
        check_precision(OpenVINOOptions(**options), ["FP32", "BF16"], "bf16")


def test_a_cpu_without_bf16() -> None:
    check_precision(OpenVINOOptions(kv_cache_precision="f32"), ["FP32"], "f32")
    with pytest.raises(EngineStartError, match="leave it out, which gives f32"):
        check_precision(OpenVINOOptions(inference_precision="bf16"), ["FP32"], "f32")
