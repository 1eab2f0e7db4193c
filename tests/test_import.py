"""What a fresh interpreter loads: the untimed half of `bench/import_time.py`."""

import penstock
from import_time import EVERY_LIGHT_NAME, EVERY_SERVING_NAME, HEAVY, modules_added


def test_the_package_itself_loads_nothing() -> None:
    assert modules_added("import penstock") <= {"__future__"}


def test_looking_around_loads_nothing() -> None:
    code = "import penstock; dir(penstock); penstock.__all__; hasattr(penstock, '__wrapped__')"
    assert modules_added(code) <= {"__future__"}


def test_every_public_name_is_light() -> None:
    assert modules_added(EVERY_LIGHT_NAME) & set(HEAVY) == set()


def test_every_public_name_comes_where_the_heavy_packages_are_not_installed() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); {EVERY_LIGHT_NAME}"
    modules_added(blocked)  # raises if a name does not come


def test_every_name_of_serving_comes_without_what_it_does_not_use() -> None:
    others = set(HEAVY) - {"starlette"}
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(others)!r})); "
    modules_added(blocked + EVERY_SERVING_NAME)  # raises if one of them is asked for


def test_public_names() -> None:
    assert vars(penstock)["__all__"] == [
        "ConfigError",
        "Job",
        "MissingExtraError",
        "PenstockError",
        "__version__",
        "arun",
        "run",
    ]


def test_the_processes_of_engines_do_not_load_the_engine() -> None:
    processes = ("openvino.constraints.worker", "openvino.worker", "sglang.options", "vllm.options")
    for name in processes:  # it writes prompts, with templates
        assert "jinja2" not in modules_added(f"import penstock.engines.{name}")


def test_an_engine_loads_no_connector_that_nobody_names():
    added = modules_added("import penstock.engines.simulated.engine, penstock.batch.job.execution")
    assert added & {"importlib.metadata", "penstock.kv.connectors", "penstock.kv.nixl"} == set()


EVERY_BATCH_NAME = "from penstock import batch; [getattr(batch, name) for name in batch.__all__]"
NOT_FOR_CONFIGURATIONS = {
    "transformers",
    "torch",
    "vllm",
    "sglang",
    "ray",
    "pyarrow",
    "openvino",
    "openvino_genai",
}


def test_every_name_of_batch_is_light() -> None:
    assert modules_added(EVERY_BATCH_NAME) & set(HEAVY) == set()


def test_a_processor_is_built_without_what_it_does_not_use() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_FOR_CONFIGURATIONS)!r})); "
    http = (
        "from penstock.batch import HttpRequestProcessorConfig, build_processor; "
        "build_processor(HttpRequestProcessorConfig(url='http://127.0.0.1/'))"
    )
    modules_added(blocked + http)  # raises if one of them is asked for
    engine = (
        "from penstock.batch import vLLMEngineProcessorConfig, build_processor; "
        "build_processor(vLLMEngineProcessorConfig(model_source='m'))"
    )
    # Which are no more than names here.
    assert modules_added(blocked + engine) & set(HEAVY) <= NOT_FOR_CONFIGURATIONS


def test_names_of_batch() -> None:
    from penstock import batch

    assert vars(batch)["__all__"] == [
        "ChatTemplateStageConfig",
        "Counts",
        "DetokenizeStageConfig",
        "Forecast",
        "HttpRequestProcessorConfig",
        "HttpRequestStageConfig",
        "Job",
        "JobInterrupted",
        "OpenVINOEngineProcessorConfig",
        "PrepareMultimodalStageConfig",
        "Processor",
        "ProcessorBuilder",
        "ProcessorConfig",
        "RowStream",
        "RunResult",
        "SGLangEngineProcessorConfig",
        "ServeDeploymentProcessorConfig",
        "StatefulStage",
        "TokenizerStageConfig",
        "acalibrate",
        "aevaluate",
        "build_processor",
        "engines",
        "stop_engines",
        "vLLMEngineProcessorConfig",
    ]
