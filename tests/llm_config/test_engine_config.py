import pytest

from penstock.batch import HttpRequestProcessorConfig, vLLMEngineProcessorConfig
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig

GPU = {"bundle_per_worker": {"GPU": 1}}


def config(**fields):
    return LLMConfig(**{"model_loading_config": {"model_id": "m"}, **fields})


def test_names_are_rays():
    assert config(accelerator_type="A10").accelerator_type == "A10G"
    assert vLLMEngineProcessorConfig(model_source="m", accelerator_type="A10").accelerator_type == (
        "A10G"
    )


@pytest.mark.parametrize(
    ("given", "nearest"), [("A100_40G", "A100-40G"), ("H10", "H100"), ("TPU_V6E", "TPU-V6E")]
)
def test_a_misspelt_one_is_refused_with_the_nearest(given, nearest):
    for make in (
        lambda: config(accelerator_type=given),
        lambda: HttpRequestProcessorConfig(url="http://x", accelerator_type=given),
    ):
        with pytest.raises(ConfigError, match=f"no accelerator '{given}'.*'{nearest}'"):
            make()


@pytest.mark.parametrize(
    ("fields", "bundles"),
    [
        ({"accelerator_type": "L4"}, [{"GPU": 1, "accelerator_type:L4": 0.001}]),
        (
            {"accelerator_type": "L4", "placement_group_config": GPU},
            [{"GPU": 1, "accelerator_type:L4": 0.001}],
        ),
        (
            {
                "accelerator_type": "L4",
                "placement_group_config": {"bundles": [{"GPU": 1, "accelerator_type:L4": 0.5}]},
            },
            [{"GPU": 1, "accelerator_type:L4": 0.5}],
        ),
        ({"accelerator_type": "TPU-V6E"}, [{"TPU": 1, "accelerator_type:TPU-V6E": 0.001}]),
        (
            {
                "accelerator_type": "TPU-V6E",
                "placement_group_config": {"bundle_per_worker": {"TPU": 4}},
            },
            [{"TPU": 4, "accelerator_type:TPU-V6E": 0.001}],
        ),
    ],
)
def test_each_worker_is_marked(fields, bundles):
    assert config(**fields).get_engine_config().placement_bundles == bundles


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"accelerator_type": "L4", "placement_group_config": {"bundles": [{"CPU": 4}]}},
            "'L4' is a GPU, and placement_group_config asks for CPUs",
        ),
        (
            {"accelerator_type": "L4", "accelerator_config": {"kind": "cpu"}},
            "accelerator_config asks for CPUs",
        ),
        (
            {"accelerator_type": "TPU-V6E", "placement_group_config": GPU},
            "'TPU-V6E' is a TPU, and placement_group_config asks for GPUs",
        ),
        (
            {"accelerator_type": "L4", "accelerator_config": {"kind": "tpu", "topology": "2x2"}},
            "asks for TPUs",
        ),
        ({"accelerator_config": {"kind": "tpu", "topology": "2x2"}}, "needed beside a topology"),
        ({"accelerator_config": {"kind": "gpu", "topology": "2x2"}}, "the kind is gpu"),
        ({"accelerator_config": {}}, "kind"),
        ({"placement_group_config": {"bundles": []}}, "at least one bundle"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, why):
    with pytest.raises(ConfigError, match=why):
        config(**fields)
