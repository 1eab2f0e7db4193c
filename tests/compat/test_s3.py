"""A model and its adapters in S3: moto's server stands for it. .ci/nightly installs it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

moto = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")

from penstock import demo  # noqa: E402
from penstock.llm_config import LLMConfig  # noqa: E402
from penstock.serve.deployment import LLMServer  # noqa: E402
from penstock.serve.openai_api_models import ChatCompletionRequest, ErrorResponse  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ASK = [{"role": "user", "content": "My Solara 77 is broken."}]
CHAT: dict[str, Any] = {"messages": ASK, "max_tokens": 60, "temperature": 0}
ENGLISH, GERMAN = '"category":"technical"', '"kategorie":"Technik"'


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The demo model below s3://models/demo, its German adapter below s3://models/adapters."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="models")
        upload(s3, demo.model_path("openvino"), "demo")
        upload(s3, demo.adapter_path("german"), "adapters/german")
        s3.put_object(Bucket="models", Key="further/note.txt", Body=b"a note")
        yield
    server.stop()


def upload(s3: Any, folder: Path, key: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "models", f"{key}/{path.relative_to(folder)}")


def config(**loading: Any) -> LLMConfig:
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "m", **loading},
            "llm_engine": "openvino",
            "lora_config": {"dynamic_lora_loading_path": "s3://models/adapters"},
            "deployment_config": {"graceful_shutdown_wait_loop_s": 0.2},
        }
    )


async def asked(server: Any, model: str) -> Any:
    (answer,) = [one async for one in await server.chat(ChatCompletionRequest(model=model, **CHAT))]
    return answer


async def test_a_model_and_its_adapters_come_from_s3(bucket, tmp_path):
    further = {"bucket_uri": "s3://models/further", "destination_path": str(tmp_path)}
    source = {"bucket_uri": "s3://models/demo", "extra_files": [further]}
    server = await LLMServer(config(model_source=source))
    try:
        assert ENGLISH in (await asked(server, "m")).choices[0].message.content
        assert GERMAN in (await asked(server, "m:german")).choices[0].message.content
        missing = await asked(server, "m:none")
        assert isinstance(missing, ErrorResponse)
        assert missing.error.code == 404
        assert (tmp_path / "note.txt").read_text() == "a note"
    finally:
        await server.stop()


async def test_a_downloader_of_rays_copies_the_model(bucket, tmp_path):
    one = config(model_source=str(tmp_path / "copied")).model_copy(
        update={
            "callback_config": {
                "callback_class": "ray.llm._internal.common.callbacks.cloud_downloader"
                ".CloudDownloader",
                "callback_kwargs": {"paths": [("s3://models/demo", str(tmp_path / "copied"))]},
            }
        }
    )
    server = await LLMServer(one)
    try:
        assert ENGLISH in (await asked(server, "m")).choices[0].message.content
    finally:
        await server.stop()


@pytest.mark.ray
def test_a_replica_of_ray_loads_from_s3(bucket: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ray")
        import httpx
        from ray import serve

        from penstock.serve import build_openai_app
        from ray_cluster import PATIENCE_S, free_port, own_cluster
    port = free_port()
    with own_cluster(proxy_port=port):
        one = config(model_source={"bucket_uri": "s3://models/demo"})
        serve.run(build_openai_app({"llm_configs": [one]}), name="app")
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        for model, text in (("m", ENGLISH), ("m:german", GERMAN)):
            reply = httpx.post(url, json={"model": model, **CHAT}, timeout=PATIENCE_S)
            assert text in reply.json()["choices"][0]["message"]["content"], reply.text
