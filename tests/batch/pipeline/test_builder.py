"""Processors built from configurations."""

import pytest

from adding import adding
from penstock.batch import (
    HttpRequestProcessorConfig,
    OpenVINOEngineProcessorConfig,
    Processor,
    ProcessorBuilder,
    ProcessorConfig,
    build_processor,
    vLLMEngineProcessorConfig,
)
from penstock.errors import ConfigError


async def coroutine(row):
    return {}


class Mine(ProcessorConfig, kw_only=True):
    number: int = 1


def build_mine(config, doubled=False, **kwargs):
    return adding(*[config.number] * (2 if doubled else 1), config=config, **kwargs)


@pytest.fixture
def registered():
    ProcessorBuilder.register(Mine, build_mine)
    yield
    ProcessorBuilder.clear_registry()


def test_a_processor_of_your_own(registered):
    processor = build_processor(
        Mine(number=5), preprocess=lambda row: {"x": 1}, builder_kwargs={"doubled": True}
    )
    assert processor([{}]).take_all() == [{"x": 11}]
    with pytest.raises(ConfigError, match="registered already"):
        ProcessorBuilder.register(Mine, build_mine)


def test_stages_can_be_overridden(registered):
    def override(name, stage):
        stage.fn_constructor_kwargs["number"] = 7

    processor = ProcessorBuilder.build(Mine(), override)
    assert processor([{"x": 0}]).take_all() == [{"x": 7}]


def test_mistakes_in_building(registered):
    with pytest.raises(ConfigError, match="give preprocess to build_processor itself"):
        build_processor(Mine(), builder_kwargs={"preprocess": None})
    ProcessorBuilder.clear_registry()
    with pytest.raises(ConfigError, match="nothing builds a Mine"):
        build_processor(Mine())
    with pytest.raises(ConfigError, match="preprocess: must be a plain function"):
        adding(1, preprocess=coroutine)
    with pytest.raises(ConfigError, match="preprocess_map_kwargs"):
        adding(1, preprocess_map_kwargs={"concurrency": "many"})
    with pytest.raises(
        ConfigError, match=r"postprocess_map_kwargs: unknown key 'num_cpu'. Did you mean 'num_cpus'"
    ):
        adding(1, postprocess_map_kwargs={"num_cpu": 1})


def test_what_a_builder_does_not_take(registered):
    with pytest.raises(
        ConfigError,
        match=r"the builder of HttpRequestProcessorConfig takes no 'double'. It takes none",
    ):
        build_processor(HttpRequestProcessorConfig(url="http://h/"), builder_kwargs={"double": 1})
    engine = OpenVINOEngineProcessorConfig(model_source="demo")
    with pytest.raises(ConfigError, match="Did you mean 'chat_template_kwargs'"):
        build_processor(engine, builder_kwargs={"chat_template_kwarg": {}})
    ProcessorBuilder.clear_registry()
    ProcessorBuilder.register(Mine, lambda config, preprocess, doubled=False: adding(1))
    with pytest.raises(
        ConfigError, match=r"the builder of Mine takes no 'double'. Did you mean 'doubled'"
    ):
        ProcessorBuilder.build(Mine(), preprocess=None, double=True)


def test_the_request_cannot_be_left_out():
    with pytest.raises(ConfigError, match=r"http_request_stage: cannot be left out"):
        build_processor(HttpRequestProcessorConfig(url="http://h/", http_request_stage=False))


def test_the_columns_of_the_first_stage_are_logged(caplog):
    with caplog.at_level("INFO", "penstock"):
        adding(1).log_input_column_names()
    assert "AddStage" in caplog.text
    assert "x: A number." in caplog.text
    with caplog.at_level("INFO", "penstock"):
        Processor(ProcessorConfig(), []).log_input_column_names()
    assert "The processor has no stages." in caplog.text


@pytest.mark.parametrize("given", [{"model_config_kwargs": {"a": 1}}, {"model_source": "other"}])
def test_a_stage_of_images_takes_nothing_that_it_does_not_use(given):
    config = OpenVINOEngineProcessorConfig(model_source="demo", prepare_multimodal_stage=given)
    with pytest.raises(ConfigError, match=f"prepare_multimodal_stage.+{next(iter(given))}"):
        build_processor(config)
    same = {"model_config_kwargs": {"allowed_local_media_path": "/"}, "model_source": "demo"}
    build_processor(
        OpenVINOEngineProcessorConfig(model_source="demo", prepare_multimodal_stage=same)
    )


def test_a_place_of_adapters_that_nothing_reads_is_refused():
    config = vLLMEngineProcessorConfig(model_source="m", dynamic_lora_loading_path="s33://loras")
    with pytest.raises(ConfigError, match=r"dynamic_lora_loading_path: unknown kind.*'s3'"):
        build_processor(config)


@pytest.mark.parametrize("task", ["generate", "embed", "classify", "score"])
def test_vllm_is_told_the_task(task):
    def options(**fields):
        config = vLLMEngineProcessorConfig(model_source="m", task_type=task, **fields)
        stage = next(one for one in build_processor(config).stages.values() if one.fn is not None)
        return stage.fn_constructor_kwargs["source"].engine_kwargs

    pooling = {"runner": "pooling", "convert": task}
    assert options() == (pooling if task == "embed" else {})
    assert options(ray_columns=True, chat_template_stage=False) == (
        pooling if task in ("embed", "classify") else {}
    )
    assert options(engine_kwargs={"runner": "generate"}) == {"runner": "generate"}


def test_what_ray_had_as_experimental():
    def tasks(**fields):
        config = vLLMEngineProcessorConfig(model_source="m", **fields)
        return config.max_tasks_in_flight_per_actor

    older = {"max_tasks_in_flight_per_actor": 3}
    assert tasks(experimental=older) == 3
    assert tasks(experimental=older, max_tasks_in_flight_per_actor=5) == 5
    assert tasks(experimental={}) is None
    for wrong, words in (({"a": 1}, "experimental.a"), ({next(iter(older)): 0}, "in_flight")):
        with pytest.raises(ConfigError, match=words):
            tasks(experimental=wrong)


def test_fields_that_are_for_ray_are_named_in_this_process(caplog):
    config = OpenVINOEngineProcessorConfig(
        model_source="demo", runtime_env={"env_vars": {}}, accelerator_type="H100"
    )
    build_processor(config)([])
    assert "only Ray heeds: runtime_env, accelerator_type" in caplog.text
    caplog.clear()
    build_processor(OpenVINOEngineProcessorConfig(model_source="demo"))([])
    assert not caplog.records
