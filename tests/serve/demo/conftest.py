"""A real `penstock serve` process: the demo model with its adapters, and a tiny model for each of the other tasks."""

import json

import pytest

from penstock import demo
from word_models import embedding_model, rerank_model

OPTIONS = {"inference_precision": "f32"}


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/serve/demo/" in item.path.as_posix():
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def server(serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = []
    for name, source in (("demo", "demo"), ("words", embedding_model), ("judge", rerank_model)):
        if callable(source):
            path = folder / name
            path.mkdir()
            source = source(path)
        models.append({"model_loading_config": {"model_id": name, "model_source": source}, "engine_kwargs": OPTIONS})
    (folder / "models.yaml").write_text(json.dumps({"llm_configs": models}))  # JSON is YAML
    env = {"PENSTOCK_CACHE_DIR": str(folder / "cache")}
    with serving(str(folder / "models.yaml"), "--dev", env=env) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


@pytest.fixture(scope="session")
def tickets():
    with demo.tickets_path().open(encoding="utf-8") as lines:
        return [json.loads(next(lines)) for _ in range(20)]
