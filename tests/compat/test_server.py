"""`LLMServer` as Ray's, in plain Python."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, ClassVar

import httpx
import pytest

pytest.importorskip("pydantic")

from import_time import modules_added
from penstock.errors import ConfigError, RequestError, UnsupportedError
from penstock.serve import LLMServer
from penstock.serve.config.settings import BatchSettings, HttpSettings
from penstock.serve.deployment import DPServer, PDDecodeServer, PDPrefillServer, RawRequestInfo
from penstock.serve.models.local import build_local_handles
from penstock.serve.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    DetokenizeRequest,
    EmbeddingCompletionRequest,
    ErrorResponse,
    ScoreRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from penstock.types import ChatRequest, CompletionRequest as NeutralCompletion, Sampling
from replica_cluster import config

ASK = [{"role": "user", "content": "Where is my parcel?"}]
CHAT: dict[str, Any] = {"messages": ASK, "max_tokens": 4, "temperature": 0}


@pytest.fixture
async def server():
    one: Any = await LLMServer(config())
    yield one
    await one.stop()


async def all_of(answer: Any) -> list[Any]:
    return [item async for item in await answer]


async def only(answer: Any) -> Any:
    (item,) = await all_of(answer)
    return item


def text_of(items: list[Any]) -> str:
    """The text of streamed lists of events."""
    events = [event for batch in items for event in batch]
    assert all(event.startswith("data: ") and event.endswith("\n\n") for event in events)
    assert events[-1] == "data: [DONE]\n\n"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


# Life
async def test_awaiting_the_class_gives_a_started_server(server):
    await server.check_health()
    assert server.engine.name == "simulated"
    assert (await server.llm_config()).model_id == "m"


async def test_sync_init_waits_for_start():
    one = LLMServer.sync_init(config())
    assert one.engine is None
    await one.check_health()
    await one.sleep()  # nothing happens to a server that is not started
    assert await one.is_sleeping() is False
    assert await one.collective_rpc("anything") == []
    with pytest.raises(RequestError, match="start"):
        await only(one.chat(CHAT))
    await one.start()
    assert isinstance(await only(one.chat(CHAT)), ChatCompletionResponse)
    await one.stop()


async def test_a_wrong_configuration_is_refused():
    with pytest.raises(ConfigError, match="no_such"):
        await LLMServer(config(engine_kwargs={"no_such": 1}))


# Requests
@pytest.mark.parametrize("form", [dict, ChatCompletionRequest])
async def test_a_chat_as_one_object(server, form):
    answer = await only(server.chat(form(**CHAT)))
    assert isinstance(answer, ChatCompletionResponse)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.model == "m"
    assert json.loads(answer.model_dump_json())["object"] == "chat.completion"


async def test_a_stream_has_lists_of_events_and_the_same_text(server):
    whole = await only(server.chat(CHAT))
    streamed = await all_of(server.chat(ChatCompletionRequest(**CHAT, stream=True)))
    assert text_of(streamed) == whole.choices[0].message.content


async def test_unset_fields_of_requests_read_as_vllms(server):
    request = ChatCompletionRequest(**CHAT)
    assert (request.n, request.min_tokens, request.ignore_eos, request.tools) == (1, 0, False, None)
    assert (request.frequency_penalty, request.logprobs) == (0.0, False)
    plain = CompletionRequest(prompt="a")
    assert (plain.presence_penalty, plain.logprobs, plain.max_tokens) == (0.0, None, 16)
    assert request.model_dump(exclude_unset=True) == CHAT
    assert request.bad_words == []
    assert isinstance(await only(server.chat(request)), ChatCompletionResponse)
    whole = (await only(server.chat(CHAT))).choices[0].message.content
    request.stop.append(whole[1])
    assert (await only(server.chat(request))).choices[0].message.content == whole[0]
    assert ChatCompletionRequest(**CHAT).stop == []


async def test_neutral_requests_give_neutral_results(server):
    request = ChatRequest(ASK, Sampling(max_tokens=4, temperature=0.0))
    deltas = await all_of(server.chat(request))
    whole = await only(server.chat(CHAT))
    assert "".join(delta.text for delta in deltas) == whole.choices[0].message.content
    assert await only(server.tokenize("hi")) == [104, 105]


async def test_completions(server):
    answer = await only(
        server.completions(CompletionRequest.model_validate({"prompt": "once", "max_tokens": 3}))
    )
    assert isinstance(answer, CompletionResponse)
    assert answer.choices[0].text


async def test_texts(server):
    vectors = await only(server.embeddings(EmbeddingCompletionRequest(input=["a", "b"])))
    assert len(vectors.data) == 2
    assert vectors.data[1].embedding
    scores = await only(server.score(ScoreRequest(text_1="a", text_2=["b", "c"])))
    assert [one.index for one in scores.data] == [0, 1]


async def test_tokens(server):
    tokens = await only(
        server.tokenize(
            TokenizeCompletionRequest.model_validate({"prompt": "hi", "add_special_tokens": False})
        )
    )
    assert (tokens.tokens, tokens.count) == ([104, 105], 2)
    text = await only(server.detokenize(DetokenizeRequest(tokens=tokens.tokens)))
    assert text.prompt == "hi"
    assert (await only(server.tokenize(TokenizeChatRequest(messages=ASK)))).count > 10


async def test_an_error_is_an_object_as_in_ray(server):
    error = await only(server.chat({**CHAT, "temperature": -1}))
    assert isinstance(error, ErrorResponse)
    assert error.error.code == 400
    (batch,) = await all_of(server.chat({**CHAT, "temperature": -1, "stream": True}))
    assert batch[0].error.param == "temperature"
    unknown = await only(server.chat({**CHAT, "model": "other"}))
    assert unknown.error.code == 404


async def test_the_request_id_is_the_callers(server):
    answer = await only(server.chat(ChatCompletionRequest(**CHAT, request_id="mine")))
    assert answer.id.startswith("chatcmpl-mine")
    answer = await only(server.chat(CHAT, RawRequestInfo({"X-Request-Id": "theirs"})))
    assert answer.id.startswith("chatcmpl-theirs")


async def test_closing_a_stream_aborts_the_request(server):
    stream = await server.chat({**CHAT, "stream": True, "max_tokens": 100_000})
    await anext(stream)
    await stream.aclose()
    await server._host.model.server.admission.emptied()


# What operators ask
async def test_sleep_and_wakeup(server):
    await server.sleep(level=1)
    assert await server.is_sleeping()
    error = await only(server.chat(CHAT))
    assert error.error.code == 503
    with pytest.raises(UnsupportedError, match="tags"):
        await server.wakeup(tags=["weights"])
    await server.wakeup()
    assert not await server.is_sleeping()
    with pytest.raises(RequestError, match="levle"):
        await server.sleep(levle=1)


async def test_pause_aborts_by_default_as_in_ray(server):
    stream = await server.chat({**CHAT, "stream": True, "max_tokens": 100_000})
    await anext(stream)
    await server.pause()
    assert await server.is_paused()
    rest = [event async for batch in stream for event in batch]
    assert rest[-1] == "data: [DONE]\n\n"
    await server.resume()
    assert not await server.is_paused()


# Subclasses
class Shouting(LLMServer):
    """A server of a user's own."""

    async def __init__(self, llm_config, **kwargs):
        await super().__init__(llm_config, **kwargs)
        self.seen = []

    async def chat(self, request, raw_request_info=None):
        self.seen.append((request.messages[0]["content"], raw_request_info.headers))
        request.max_tokens = 2
        async for item in await super().chat(request, raw_request_info):
            yield item

    async def sleep(self, **kwargs):
        self.seen.append(kwargs)
        await super().sleep(**kwargs)


async def test_overridden_methods_answer_whatever_asks_the_model():
    model: Any = build_local_handles([config(server_cls=Shouting)])["m"]
    await model.start()
    request = ChatRequest(ASK, Sampling(max_tokens=9, temperature=0.0), request_id="r")
    for stream in (True, False):
        asked = request.__class__(ASK, request.sampling, request_id="r", stream=stream)
        deltas = [delta async for delta in model.chat(asked)]
        assert deltas[-1].usage.completion_tokens == 2
        assert deltas[-1].finish_reason == "length"
    face = await model._face()
    assert face.seen[0] == (ASK[0]["content"], {"x-request-id": "r"})
    await model.control("sleep", {"level": 1})
    assert face.seen[-1] == {"level": 1}
    assert model.state().state == "asleep"
    await model.stop(0.0)


async def test_no_engine_judges_what_an_overridden_method_answers():
    class Completing(LLMServer):
        async def completions(self, request, raw_request_info=None):
            yield ErrorResponse.model_validate({"error": {"message": "no"}})

    beyond = NeutralCompletion([1 << 40])
    model: Any = build_local_handles([config(server_cls=Completing)])["m"]
    await model.check_before_load("completions", beyond)
    other: Any = build_local_handles([config(server_cls=Shouting)])["m"]
    with pytest.raises(RequestError, match="token ids"):
        await other.check_before_load("completions", beyond)


async def test_an_error_of_ones_own_reaches_the_client_with_its_status():
    class Refusing(LLMServer):
        async def chat(self, request, raw_request_info=None):
            error = {"message": "not today", "type": "Mine", "code": 418}
            yield ErrorResponse.model_validate({"error": error})

    model: Any = build_local_handles([config(server_cls=Refusing)])["m"]
    with pytest.raises(RequestError, match="not today") as caught:
        [_ async for _ in model.chat(ChatRequest(ASK))]
    assert caught.value.status == 418
    await model.stop(0.0)


def test_what_is_not_called_is_refused():
    class Inner(LLMServer):
        async def _start_engine(self):
            pass

    with pytest.raises(ConfigError, match="_start_engine"):
        Inner.sync_init(config())


# Engines and downloaders


@pytest.mark.parametrize("given", ["hi", [1, 2], Sampling()])
async def test_what_is_no_request_is_an_error_that_says_so(server, given):
    with pytest.raises(RequestError, match=f"not a {type(given).__name__}"):
        await only(server.chat(given))


class RaysEngine:
    """An engine of Ray's form."""

    def __init__(self, llm_config):
        self.llm_config = llm_config
        self.adapters = []

    async def start(self):
        self.started = True

    async def chat(self, request, raw_request_info=None):
        text = f"{request.model}: {request.messages[-1]['content']}"
        if request.stream:
            for part in text.split(" "):
                choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield f"data: {json.dumps({'choices': [end]})}\n\ndata: [DONE]\n\n"
            return
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        yield ChatCompletionResponse.model_validate({"choices": [choice]})

    async def resolve_lora(self, model):
        self.adapters.append(model.model_id)

    async def shutdown(self):
        self.started = False


async def test_an_engine_of_rays_form():
    one: Any = await LLMServer(config(), engine_cls=RaysEngine)
    inner = one.engine
    assert isinstance(inner, RaysEngine)
    assert inner.started
    answer = await only(one.chat(CHAT))
    assert answer.choices[0].message.content == "m: Where is my parcel?"
    streamed = await all_of(one.chat({**CHAT, "stream": True}))
    assert text_of(streamed) == "m:Whereismyparcel?"
    error = await only(one.embeddings({"input": "a"}))
    assert "embeddings" in error.error.message
    await one.stop()
    assert inner.started is False


async def test_the_default_engine_of_a_class():
    class Own(LLMServer):
        _default_engine_cls = RaysEngine

    one: Any = await Own(config())
    assert isinstance(one.engine, RaysEngine)
    await one.stop()


async def test_a_downloader_of_ones_own(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 1}')

    class Downloader:
        asked: ClassVar[list[str]] = []

        def __init__(self, download_timeout_s, max_tries):
            assert (download_timeout_s, max_tries) == (7, 2)

        async def load_model_from_config(self, lora_model_id, llm_config):
            self.asked.append(lora_model_id)
            return type("Disk", (), {"local_path": str(tmp_path)})

    lora = {"dynamic_lora_loading_path": "s", "download_timeout_s": 7, "max_download_tries": 2}
    one: Any = await LLMServer(
        config(lora_config=lora), engine_cls=RaysEngine, model_downloader=Downloader
    )
    answer = await only(one.chat({**CHAT, "model": "m:mine"}))
    assert answer.choices[0].message.content.startswith("m:mine@")
    assert Downloader.asked == ["m:mine"]
    await one.stop()


# The other servers
async def test_prefill_and_decode():
    transfer = {"kv_transfer_config": {"kv_connector": "SimulatedConnector", "kv_role": "kv_both"}}
    prefill: Any = await PDPrefillServer(config(engine_kwargs=transfer))
    decode: Any = await PDDecodeServer(config(engine_kwargs=transfer), prefill_server=prefill)
    assert isinstance(await only(decode.chat(CHAT)), ChatCompletionResponse)
    assert decode._host.model.server.handoffs["remote"] == 1
    assert await prefill.prewarm_prefill(CompletionRequest(prompt="x"))
    await decode.stop()
    await prefill.stop()
    with pytest.raises(ConfigError, match="prefill"):
        await PDDecodeServer(config(engine_kwargs=transfer))


async def test_a_data_parallel_group():
    one: Any = await DPServer(config(engine_kwargs={"data_parallel_size": 2}))
    assert isinstance(await only(one.chat(CHAT)), ChatCompletionResponse)
    assert len(one.engine.ranks) == 2
    await one.stop()
    with pytest.raises(ConfigError, match="data_parallel_size"):
        await DPServer(config())


async def test_the_application_of_a_server(server):
    from penstock.serve.compat.asking import ask, scope_of

    app = await server.build_asgi_app()
    answer = await ask(app, scope_of("/v1/models/m", method="GET"), b"")
    assert json.loads(await answer.whole())["id"] == "m"
    assert (await ask(app, scope_of("/nope", method="GET"), b"")).status == 404


async def test_the_application_of_a_server_has_no_batches_and_says_so(server):
    server._about = {"settings": HttpSettings(batches=BatchSettings(path="kept"))}
    transport = httpx.ASGITransport(await server.build_asgi_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/batches")).status_code == 404
        assert (await client.post("/console/live", json={})).json()["batches"] is False


def test_options_of_a_deployment():
    options = LLMServer.get_deployment_options(config(engine_kwargs={"max_num_seqs": 4}))
    assert options["placement_group_bundles"] == [{"CPU": 2.0}]


SERVED = """
import asyncio, sys
import penstock.cli.serve
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import made_ingress
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.local import build_local_handles

async def main():
    loading = {"model_id": "m", "model_source": "simulated"}
    one = LLMConfig(model_loading_config=loading, llm_engine="simulated")
    models = build_local_handles([one])
    made_ingress({}, models, [one], settings=HttpSettings(dev=True))
    await models["m"].start()
    assert await models["m"].tokenize("a")
    await models["m"].stop(0.0)

asyncio.run(main())
print(*sys.modules)
"""


def test_who_does_not_use_it_loads_none_of_it():
    done = subprocess.run(
        [sys.executable, "-c", SERVED], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "penstock.serve.models.local" in loaded
    faces = ("penstock.serve.compat", "penstock.compat", "penstock.ray", "pydantic", "fastapi")
    assert [name for name in loaded if name.startswith(faces)] == []


def test_the_class_alone_needs_no_pydantic():
    blocked = "import sys; sys.modules['pydantic'] = None; "
    modules_added(blocked + "from penstock.serve import LLMServer")


class TokenizingEngine(RaysEngine):
    async def tokenize(self, request, raw_request_info=None):
        return {"count": 1, "max_model_len": 8, "tokens": [len(request.prompt)]}


async def test_an_engine_of_rays_form_has_no_tokenizer_to_describe():
    one: Any = await LLMServer(config(), engine_cls=TokenizingEngine)
    assert await one._host.model.tokenize("abc") == [3]
    with pytest.raises(UnsupportedError, match="tokenizer_info"):
        await one._host.model.tokenizer_info()
    await one.stop()


class SleepyEngine(RaysEngine):
    made: ClassVar[list[Any]] = []

    def __init__(self, llm_config):
        super().__init__(llm_config)
        self.made.append(self)
        self.called: list[Any] = []

    async def sleep(self, **options):
        self.called.append(("sleep", options))

    async def wakeup(self, **options):
        self.called.append(("wakeup", options))

    async def pause(self, **options):
        self.called.append(("pause", options))

    async def reset_prefix_cache(self):
        self.called.append(("reset_prefix_cache", {}))


async def test_an_engine_of_rays_form_wakes_and_is_not_made_again():
    SleepyEngine.made.clear()
    one: Any = await LLMServer(config(), engine_cls=SleepyEngine)
    await one.sleep(level=2)
    assert await one.is_sleeping()
    await one.wakeup()
    assert isinstance(await only(one.chat(CHAT)), ChatCompletionResponse)
    (engine,) = SleepyEngine.made
    assert engine.called == [("sleep", {"level": 2}), ("wakeup", {})]
    await one.stop()


@pytest.mark.parametrize("clears", [False, True])
async def test_whether_a_pause_clears_the_cache_of_an_engine_of_rays_form(clears):
    SleepyEngine.made.clear()
    one: Any = await LLMServer(config(), engine_cls=SleepyEngine)
    await one.pause(clear_cache=clears)
    (engine,) = SleepyEngine.made
    paused = ("pause", {"mode": "abort", "clear_cache": False})
    assert engine.called == [paused] + [("reset_prefix_cache", {})] * clears
    await one.stop()
