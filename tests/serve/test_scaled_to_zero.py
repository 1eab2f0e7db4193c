"""What wakes a model that is scaled to zero: a request that its engine is to answer, nothing else.
In this process, and where replicas run elsewhere.
"""

import json
from typing import Any

import fsspec
import httpx
import pytest

from penstock.engines.base import Stated
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineStartError
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.settings import HttpSettings, StoreSettings
from penstock.serve.models.local import LocalModel
from penstock.serve.models.server import LLMServer
from penstock.serve.replicas.model import RemoteModel
from penstock.types import Classification, Classifications, CompletionRequest
from replica_cluster import KEY, Make, config
from waking import BEYOND, BROKEN, CHAT, CONTROLS, DAMAGED, GETS, MALFORMED, NO_MODELS

ZERO = {"deployment_config": {"autoscaling_config": {"min_replicas": 0}}}


class Local:
    """The model in this process."""

    def __init__(self, model: LLMConfig) -> None:
        self.model = LocalModel(model)
        app = OpenAiIngress(
            {"m": self.model}, lora_paths={"m": "/nowhere"}, settings=HttpSettings(dev=True)
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        )

    @property
    def woken(self) -> int:
        return self.model.state().loads

    async def close(self) -> None:
        await self.client.aclose()
        await self.model.stop(0)


class Elsewhere:
    """The model's replicas are elsewhere."""

    def __init__(self, made) -> None:
        self._made = made
        self.client = made.client

    @property
    def woken(self) -> int:
        return self._made.obtained

    async def close(self) -> None:
        pass


@pytest.fixture(params=["local", "elsewhere"])
async def zero(request, cluster: Make, tmp_path):
    model = config(**ZERO, lora_config={"dynamic_lora_loading_path": str(tmp_path)})
    one = Local(model) if request.param == "local" else Elsewhere(await cluster(0, model))
    yield one
    await one.close()


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_get_wakes_it(zero, path, method):
    reply = await zero.client.request(method, path, params={"model": "m"})
    assert zero.woken == 0
    assert reply.status_code in (200, 400, 404, 503), reply.text


async def test_a_get_says_why_there_is_no_answer(zero):
    reply = await zero.client.get("/tokenizer_info")
    assert reply.status_code == 503
    assert "the first request to be answered loads it" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("path", "body"), MALFORMED)
async def test_no_malformed_body_wakes_it(zero, path, body):
    reply = await zero.client.post(path, json={"model": "m", **body})
    assert reply.status_code == 400, reply.text
    assert zero.woken == 0


@pytest.mark.parametrize("content", BROKEN)
async def test_no_broken_body_wakes_it(zero, content):
    headers = {"content-type": "application/json"}
    reply = await zero.client.post("/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == 400, reply.text
    assert zero.woken == 0


async def test_no_form_without_a_file_wakes_it(zero):
    reply = await zero.client.post("/v1/audio/transcriptions", files={"model": (None, "m")})
    assert reply.status_code == 400, reply.text
    assert zero.woken == 0


@pytest.mark.parametrize("name", NO_MODELS)
async def test_no_unknown_model_wakes_it(zero, name):
    reply = await zero.client.post("/v1/chat/completions", json={**CHAT, "model": name})
    assert reply.status_code == 404, reply.text
    assert zero.woken == 0


@pytest.mark.parametrize(("path", "body"), CONTROLS)
async def test_no_control_call_wakes_it(zero, path, body):
    await zero.client.post(path, json={"model": "m", **body})
    assert zero.woken == 0


@pytest.mark.parametrize("refused", [{"cache_salt": "x"}, {"logprobs": True, "top_logprobs": 9}])
async def test_nothing_wakes_it_that_its_engine_is_known_to_refuse(zero, refused):
    reply = await zero.client.post("/v1/chat/completions", json={**CHAT, **refused})
    assert reply.json()["error"]["param"] == list(refused)[-1]
    assert (reply.status_code, zero.woken) == (400, 0)


@pytest.mark.parametrize("engine", ["openvino", "vllm"])
async def test_no_constraint_wakes_it_that_no_engine_can_read(cluster, engine):
    source = {"model_id": "m", "model_source": "demo"}
    made = await cluster(0, config(**ZERO, llm_engine=engine, model_loading_config=source))
    for kind, spec in DAMAGED:
        asked = {"type": kind, "pattern" if kind == "regex" else kind: spec}
        for given in ({"response_format": asked}, {"structured_outputs": {kind: spec}}):
            reply = await made.client.post("/v1/chat/completions", json={**CHAT, **given})
            assert (reply.status_code, made.obtained) == (400, 0), (spec, reply.text)
            assert reply.json()["error"]["param"].startswith(next(iter(given)))


@pytest.mark.parametrize(("path", "body", "param"), BEYOND)
async def test_no_token_beyond_the_vocabulary_wakes_it(zero, path, body, param):
    reply = await zero.client.post(path, json={"model": "m", **body})
    assert reply.json()["error"]["param"].startswith(param)
    assert (reply.status_code, zero.woken) == (400, 0)


@pytest.mark.parametrize("path", ["/classify", "/v1/audio/transcriptions"])
async def test_nothing_wakes_it_that_is_no_task_of_its_model(zero, path):
    if path == "/classify":
        reply = await zero.client.post(path, json={"model": "m", "input": "a"})
    else:
        files = {"model": (None, "m"), "file": ("a.wav", b"RIFF")}
        reply = await zero.client.post(path, files=files)
    assert "does not support" in reply.json()["error"]["message"]
    assert (reply.status_code, zero.woken) == (400, 0)


@pytest.mark.parametrize(("path", "body", "param"), [*BEYOND, ("/classify", {"input": "a"}, None)])
async def test_what_a_replica_told_of_its_model_holds_when_it_is_gone(
    cluster, monkeypatch, path, body, param
):
    def nothing_is_known_here(config):
        raise EngineStartError("the model's files are elsewhere")

    monkeypatch.setattr("penstock.serve.replicas.model.make_engine", nothing_is_known_here)
    made = await cluster(0, config(**ZERO))
    assert (await made.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    made.listed = ()
    later = OpenAiIngress({"m": RemoteModel(made.config, made, key=KEY, desired=made.desired)})
    for app in (made.app, later):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
        reply = await client.post(path, json={"model": "m", **body})
        assert (reply.status_code, made.obtained) == (400, 1), reply.text
        assert (reply.json()["error"]["param"] or "").startswith(param or "")
    other = RemoteModel(made.config, made, key=KEY)  # of a deployment that had no replica yet
    await other.check_before_load("completions", CompletionRequest([5, 300]))


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/completions", {"prompt": [300]}, "token ids must be from 0 to 299"),
        ("/classify", {"input": "a"}, "does not support classify with this model"),
    ],
)
async def test_what_a_bucket_says_of_a_model_holds_before_it_was_loaded(cluster, path, body, why):
    bucket = fsspec.filesystem("memory")
    described = {"architectures": ["LlamaForCausalLM"], "vocab_size": 300}
    bucket.pipe("/zero/m/config.json", json.dumps(described).encode())
    source = {"model_id": "m", "model_source": "memory://zero/m"}
    made = await cluster(0, config(**ZERO, llm_engine="openvino", model_loading_config=source))
    reply = await made.client.post(path, json={"model": "m", **body})
    assert (reply.status_code, made.obtained) == (400, 0), reply.text
    assert why in reply.json()["error"]["message"]


async def test_several_prompts_read_the_model_s_files_once(zero, monkeypatch):
    read: list[SimulatedEngine] = []
    stated = SimulatedEngine.stated

    def counted(engine: SimulatedEngine) -> Stated:
        read.append(engine)
        return stated(engine)

    monkeypatch.setattr(SimulatedEngine, "stated", counted)
    wrong = {"model": "m", "prompt": [[1], [2], [300]]}
    assert (await zero.client.post("/v1/completions", json=wrong)).status_code == 400
    assert (len(read), zero.woken) == (1, 0)


class Classifying(LLMServer):
    """Answers what its engine does not."""

    async def classify(self, request):
        return Classifications([Classification("glad", [0.25, 0.75])])


async def test_a_server_of_a_user_s_may_answer_what_its_engine_does_not(cluster):
    made = await cluster(0, config(**ZERO, server_cls=Classifying))
    for obtained in (1, 2):
        reply = await made.client.post("/classify", json={"model": "m", "input": "a"})
        assert (reply.status_code, made.obtained) == (200, obtained), reply.text
        made.listed = ()


class OfAGpu(SimulatedEngine):
    """Cannot be made without one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        made_here.append(self)
        raise RuntimeError("no GPU")


made_here: list[OfAGpu] = []


@pytest.mark.parametrize("own", [True, False])
async def test_an_engine_that_cannot_be_made_here_judges_nothing(cluster, monkeypatch, own):
    monkeypatch.setattr("penstock.serve.models.server.engine_class", lambda name: OfAGpu)
    if own:
        monkeypatch.setenv("PENSTOCK_ENGINE_CLS", f"{__name__}:OfAGpu")
    made_here.clear()
    made = await cluster(0)
    await made.model.check_before_load("classify", None)
    await made.model.check_before_load("completions", CompletionRequest([1 << 40]))
    assert len(made_here) == (not own)  # a user's own is not even tried


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_wakes_it(zero, stream):
    reply = await zero.client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert reply.status_code == 200, reply.text
    assert zero.woken == 1
    assert (await zero.client.get("/tokenizer_info")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "prompt_logprobs": 1}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
    ],
)
async def test_so_does_a_request_of_another_kind(zero, path, body):
    reply = await zero.client.post(path, json={"model": "m", **body})
    assert reply.status_code == 200, reply.text
    assert zero.woken == 1


@pytest.mark.parametrize("body", [{}, {"input": "a", "max_output_tokens": -1}, {"input": [{}]}])
async def test_no_malformed_response_to_be_stored_wakes_it(cluster, tmp_path, body):
    store = StoreSettings(path=str(tmp_path / "store.db"))
    made = await cluster(0, config(**ZERO), store=store)
    reply = await made.client.post("/v1/responses", json={"model": "m", **body})
    assert reply.status_code == 400, reply.text
    assert made.obtained == 0
