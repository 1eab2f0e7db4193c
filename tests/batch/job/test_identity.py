"""What of a processor's configuration decides its job's output."""

import pytest

import penstock
from penstock.batch import (
    ChatTemplateStageConfig,
    HttpRequestProcessorConfig,
    OpenVINOEngineProcessorConfig,
    SGLangEngineProcessorConfig,
    build_processor,
    vLLMEngineProcessorConfig,
)
from penstock.batch.cache.shared import model_identity
from penstock.batch.job.identity import processor_identity
from penstock.batch.job.plan import plan_of
from penstock.batch.write.manifest import Manifest, normal
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.model import source as openvino
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import JobMismatchError


def same(kind, ours, theirs):
    """Whether two configurations make the same job."""
    return processor_identity(build_processor(kind(**ours))) == processor_identity(
        build_processor(kind(**theirs))
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (
            OpenVINOEngineProcessorConfig,
            {"engine_kwargs": {"num_threads": 2, "properties": {"CACHE_DIR": "c"}}},
        ),
        (
            vLLMEngineProcessorConfig,
            {"engine_kwargs": {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2}},
        ),
        (
            SGLangEngineProcessorConfig,
            {"engine_kwargs": {"mem_fraction_static": 0.5, "tp_size": 2}},
        ),
        (OpenVINOEngineProcessorConfig, {"batch_size": 3, "concurrency": 2}),
    ],
)
def test_what_costs_memory_or_time_makes_no_other_job(kind, options):
    assert same(kind, {"model_source": "demo"}, {"model_source": "demo", **options})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OpenVINOEngineProcessorConfig, {"engine_kwargs": {"inference_precision": "f32"}}),
        (
            OpenVINOEngineProcessorConfig,
            {"engine_kwargs": {"properties": {"KV_CACHE_PRECISION": "u8"}}},
        ),
        (OpenVINOEngineProcessorConfig, {"deterministic": True}),
        (vLLMEngineProcessorConfig, {"engine_kwargs": {"dtype": "float16"}}),
        (SGLangEngineProcessorConfig, {"deterministic": True}),
        (
            OpenVINOEngineProcessorConfig,
            {"chat_template_stage": {"chat_template": "{{ messages }}"}},
        ),
        (OpenVINOEngineProcessorConfig, {"chat_template_stage": False}),
    ],
)
def test_what_decides_makes_another_job(kind, options):
    assert not same(kind, {"model_source": "demo"}, {"model_source": "demo", **options})


def test_how_many_workers_a_stage_has_makes_no_other_job():
    given = [
        ChatTemplateStageConfig(batch_size=3, num_cpus=1),
        {"concurrency": 2, "memory": 1e9},
        {},
    ]
    ours, *theirs = ({"model_source": "demo", "chat_template_stage": stage} for stage in given)
    for other in theirs:
        assert same(OpenVINOEngineProcessorConfig, ours, other)


def test_a_stage_that_is_switched_on_with_a_time_limit_is_on():
    off, on, patient = (
        {"model_source": "demo", "prepare_multimodal_stage": stage}
        for stage in (False, True, {"timeout_s": 9})
    )
    assert same(vLLMEngineProcessorConfig, on, patient)
    assert not same(vLLMEngineProcessorConfig, off, patient)


def test_how_an_endpoint_is_reached_makes_no_other_job():
    url = {"url": "http://127.0.0.1/"}
    assert same(
        HttpRequestProcessorConfig, url, {**url, "qps": 3, "timeout_s": 9, "headers": {"a": "b"}}
    )


@pytest.fixture
def raised(tmp_path, monkeypatch):
    """A model in Hugging Face's form, and what makes a later version convert it otherwise."""
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path), lambda: monkeypatch.setattr(openvino, "_RECIPE", openvino._RECIPE + 1)


def test_another_conversion_of_a_model_is_another_job_and_has_no_cached_answers(raised):
    source, raise_recipe = raised
    engine = OpenVINOEngine(source)

    def identities():
        configs = [{"model_source": source}, {"engine": engine}]
        jobs = [
            processor_identity(build_processor(OpenVINOEngineProcessorConfig(**config)))
            for config in configs
        ]
        return [*jobs, model_identity(engine)]

    before = identities()
    raise_recipe()
    for was, now in zip(before, identities(), strict=True):
        assert {name for name in was if was[name] != now[name]} == {"conversion"}
    as_it_is = [model_identity(SimulatedEngine()), model_identity(OpenVINOEngine("demo"))]
    assert all("conversion" not in one for one in as_it_is)


@pytest.mark.parametrize("source", ["~no-such-user/here", "x" * 300, f"{'x' * 300}.gguf"])
def test_a_model_that_no_path_can_name_has_an_identity_until_its_start_refuses_it(source):
    processor = build_processor(OpenVINOEngineProcessorConfig(model_source=source))
    assert processor_identity(processor)["conversion"] in (None, openvino._RECIPE)
    assert model_identity(OpenVINOEngine(source))["model"] == source


async def test_a_job_goes_on_with_the_conversion_that_began_it(raised, tmp_path):
    source, raise_recipe = raised
    job = penstock.Job([{"text": "a"}], str(tmp_path / "o.jsonl"), prompt="{text}", model=source)

    async def identity():
        plan = await plan_of(job)
        await plan.source.close()
        return normal(plan.identity)

    begun = Manifest(await identity())
    assert not begun.differences(await identity())
    raise_recipe()
    with pytest.raises(JobMismatchError, match=r"conversion(.|\n)*If only Penstock has changed"):
        begun.require(await identity(), "o.jsonl")
    del begun.job["conversion"]  # before jobs knew of it
    assert not begun.differences(await identity())
