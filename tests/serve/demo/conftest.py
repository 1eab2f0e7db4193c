"""A real `penstock serve` process: the demo model with its adapters, and a tiny model for each of
the other tasks.

With PENSTOCK_TEST_ENGINE=vllm the demo model is on vLLM, in the environment of
PENSTOCK_TEST_PYTHON, and the other tasks are left out: the clients need not be where vLLM is
(`scripts/test_vllm_clients.sh`).
"""

import json
import os
import sys
from typing import Any

import pytest

from penstock import demo
from word_models import embedding_model, rerank_model

ENGINE = os.environ.get("PENSTOCK_TEST_ENGINE", "openvino")
PYTHON = os.environ.get("PENSTOCK_TEST_PYTHON", sys.executable)
OPTIONS = {"openvino": {"inference_precision": "f32"}, "vllm": {}}[ENGINE]
SOURCES: dict[str, Any] = {"demo": "demo"}
if ENGINE == "openvino":
    SOURCES |= {"words": embedding_model, "judge": rerank_model}


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/serve/demo/" in item.path.as_posix():
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def server(serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = []
    for name, source in SOURCES.items():
        if callable(source):
            path = folder / name
            path.mkdir()
            source = source(path)
        loading = {"model_id": name, "model_source": source}
        models.append(
            {"model_loading_config": loading, "llm_engine": ENGINE, "engine_kwargs": OPTIONS}
        )
    (folder / "models.yaml").write_text(json.dumps({"llm_configs": models}))  # JSON is YAML
    env = {"PENSTOCK_CACHE_DIR": str(folder / "cache")}
    with serving(str(folder / "models.yaml"), "--dev", env=env, python=PYTHON) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


@pytest.fixture(scope="session")
def engine_name():
    return ENGINE


@pytest.fixture(scope="session")
def tickets():
    with demo.tickets_path().open(encoding="utf-8") as lines:
        return [json.loads(next(lines)) for _ in range(20)]
