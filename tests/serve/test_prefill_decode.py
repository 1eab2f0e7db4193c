"""Two simulated engines, one for prompts and one for tokens, as a model of one process."""

import asyncio
import json
from typing import Any, cast

import httpx
import pytest
from msgspec import structs

from penstock.engines.simulated.engine import _HELD
from penstock.errors import ConfigError, EngineError, RequestError
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.config.serving_args import LLMServingArgs, PDServingArgs, load_serving_args
from penstock.serve.models.local import LocalModel
from penstock.serve.prefill_decode import SENDER, paired
from penstock.types import ChatRequest, CompletionRequest, Sampling, StructuredOutput

LOADING = {"model_id": "m", "model_source": "simulated"}
KV = {"kv_transfer_config": {"kv_connector": "SimulatedConnector"}}
GREEDY = Sampling(temperature=0.0, max_tokens=12)
ASK = ChatRequest([{"role": "user", "content": "How high is the water?"}], GREEDY)


def config(**fields):
    fields = {"model_loading_config": LOADING, "llm_engine": "simulated", **fields}
    fields["engine_kwargs"] = {**KV, **fields.get("engine_kwargs", {})}
    return LLMConfig.from_dict(fields)


class Pair:
    """The model, its servers and its engines."""

    def __init__(self, prefill, decode):
        self.model = LocalModel(paired(prefill, decode))
        self.decode = cast(Any, self.model.server)
        self.prefill = self.decode.prefill.server
        self.handoffs = self.decode.handoffs

    @property
    def engines(self):
        return self.prefill.engine, self.decode.engine

    def idle(self):
        """Nothing runs on either side, and no cache waits."""
        return not any(e.running for e in self.engines) and not any(_HELD.values())


@pytest.fixture
async def pair():
    made = []

    async def make(prefill=None, decode=None, start=True):
        one = Pair(config(**(prefill or {})), config(**(decode or {})))
        made.append(one)
        if start:
            await one.model.start()
        return one

    yield make
    for one in made:
        await one.model.stop(0.0)
    assert not any(_HELD.values())


@pytest.fixture
async def alone():
    """The same model on one engine."""
    model = LocalModel(
        LLMConfig.from_dict({"model_loading_config": LOADING, "llm_engine": "simulated"})
    )
    await model.start()
    yield model
    await model.stop(0.0)


async def answer(model, request):
    task = model.chat if isinstance(request, ChatRequest) else model.completions
    deltas = [delta async for delta in task(request)]
    return "".join(delta.text for delta in deltas), deltas[-1]


async def until(so):
    while not so():  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)


SCHEMA = '{"type": "object", "properties": {"level": {"type": "integer"}}}'
REQUESTS = {
    "chat": ASK,
    "not streamed": structs.replace(ASK, stream=False),
    "text": CompletionRequest("The water stands", GREEDY),
    "ids": CompletionRequest([84, 104, 101], GREEDY),
    "echo": CompletionRequest("The water stands", GREEDY, echo=True),
    "logprobs": structs.replace(ASK, sampling=structs.replace(GREEDY, logprobs=3)),
    "schema": structs.replace(
        ASK,
        sampling=structs.replace(
            GREEDY, max_tokens=60, structured=StructuredOutput("json_schema", SCHEMA)
        ),
    ),
    "stop": structs.replace(ASK, sampling=structs.replace(GREEDY, stop=("e",))),
    "long": CompletionRequest("The water stands high. " * 400, GREEDY),
    "tools": structs.replace(
        ASK, tools=[{"type": "function", "function": {"name": "open"}}], request_id="r"
    ),
}


class TestHandOver:
    @pytest.mark.parametrize("name", REQUESTS)
    async def test_answers_are_those_of_one_engine(self, pair, alone, name):
        one = await pair()
        text, last = await answer(one.model, REQUESTS[name])
        expected, whole = await answer(alone, REQUESTS[name])
        assert text == expected
        assert (last.finish_reason, last.logprobs, last.tool_calls) == (
            whole.finish_reason,
            whole.logprobs,
            whole.tool_calls,
        )
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
        assert one.handoffs == {"remote": 1}
        assert one.decode.engine.kv_transfers == 1
        assert one.prefill.engine.requests_served == 1
        assert one.idle()

    async def test_the_prefill_side_is_given_the_ids_and_makes_one_token(self, pair, monkeypatch):
        one = await pair()
        prefill, decode = one.engines
        seen = []

        def spied(real):
            def generate(request):
                seen.append(request)
                return real(request)

            return generate

        for engine in (prefill, decode):
            monkeypatch.setattr(engine, "continue_prompt", spied(engine.continue_prompt))
        tokenized = []
        real = decode.prompt_ids

        async def prompt_ids(request):
            tokenized.append(request)
            return await real(request)

        monkeypatch.setattr(decode, "prompt_ids", prompt_ids)
        await answer(one.model, ASK)
        first, second = seen
        assert isinstance(first.prompt, list)
        assert first.prompt == second.prompt
        assert first.sampling.max_tokens == 1
        assert first.kv_transfer_params == {"do_remote_decode": True, "do_remote_prefill": False}
        assert second.kv_transfer_params["remote_engine_id"] == prefill.identity.engine_id
        assert SENDER not in second.kv_transfer_params
        assert len(tokenized) == 1

    async def test_whoever_asks_the_prefill_side_gets_one_token(self, pair):
        one = await pair()
        for request in (ASK, REQUESTS["echo"]):
            _, last = await answer(one.decode.prefill, structs.replace(request, n=3))
            assert last.usage.completion_tokens == 1
            assert last.kv_transfer_params[SENDER]["connector"] == "SimulatedConnector"

    async def test_adapters(self, pair, alone, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "adapter_config.json").write_text("{}")
            (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())
        lora = {"lora_config": {"dynamic_lora_loading_path": str(tmp_path)}}
        one = await pair(lora, lora)
        texts = [
            (await answer(one.model, structs.replace(ASK, adapter=name)))[0]
            for name in ("a", "b", None)
        ]
        assert texts[0].startswith("a@")
        assert texts[1].startswith("b@")
        assert texts[2] == (await answer(alone, ASK))[0]
        assert one.handoffs == {"remote": 3}
        assert one.prefill._adapters.loads == 2

    async def test_many_at_once(self, pair, alone):
        one = await pair(
            {"engine_kwargs": {"max_num_seqs": 4, "time_to_first_token_ms": 1}},
            {"engine_kwargs": {"max_num_seqs": 8, "time_per_token_ms": 0.5}},
        )
        asked = [
            CompletionRequest(f"Gate {n} " * (1 + 7 * (n % 3)), GREEDY, stream=n % 2 > 0)
            for n in range(60)
        ]
        texts = [
            text
            for text, _ in await asyncio.gather(*(answer(one.model, request) for request in asked))
        ]
        assert texts == [(await answer(alone, request))[0] for request in asked]
        assert one.handoffs == {"remote": 60}
        assert one.idle()

    async def test_a_request_that_brings_a_cache_is_left_alone(self, pair):
        one = await pair()
        ids = await one.decode.engine.prompt_ids(ASK)
        asked = CompletionRequest(
            ids, GREEDY, kv_transfer_params=one.decode.engine.connector.request_params()
        )
        _, told = await answer(one.decode.prefill, asked)
        await answer(one.model, structs.replace(ASK, kv_transfer_params=told.kv_transfer_params))
        assert one.decode.engine.kv_transfers == 1
        assert not one.handoffs

    async def test_what_the_request_gets_wrong_is_told_and_not_handed_over(self, pair):
        one = await pair()
        with pytest.raises(RequestError):
            await answer(one.model, CompletionRequest([999], GREEDY))
        with pytest.raises(RequestError):
            await answer(one.model, CompletionRequest("x" * 40_000, GREEDY))
        assert one.idle()


class TestFallback:
    async def check(self, one, outcome, request=ASK):
        """The answer is right, and was computed here."""
        text, _ = await answer(one.model, request)
        whole = LocalModel(
            LLMConfig.from_dict({"model_loading_config": LOADING, "llm_engine": "simulated"})
        )
        await whole.start()
        assert text == (await answer(whole, request))[0]
        await whole.stop(0.0)
        assert one.handoffs[outcome] == 1
        assert one.handoffs.total() == 1
        assert one.decode.engine.kv_transfers == 0

    async def test_several_answers_are_computed_here(self, pair):
        one = await pair()
        await answer(one.model, structs.replace(ASK, n=2))
        assert one.handoffs == {"local": 1}

    async def test_short_prompts_are_not_worth_it(self, pair):
        one = await pair(decode={"experimental_configs": {"prefill_min_tokens": 1000}})
        await self.check(one, "local")

    async def test_a_prompt_that_is_more_than_tokens(self, pair, monkeypatch):
        one = await pair()

        async def more(request):
            return None

        monkeypatch.setattr(one.decode.engine, "prompt_ids", more)
        await self.check(one, "local")

    async def test_a_prefill_engine_that_dies_in_the_middle(self, pair):
        one = await pair({"engine_kwargs": {"time_to_first_token_ms": 3_600_000}})
        asked = asyncio.create_task(self.check(one, "failed"))
        await until(lambda: one.prefill.engine.running)
        one.prefill.engine._die("killed")
        await asked

    async def test_a_dead_prefill_engine_is_asked_again_when_it_is_back(self, pair):
        one = await pair({"engine_kwargs": {"time_to_first_token_ms": 3_600_000, "start_ms": 1}})
        asked = asyncio.create_task(answer(one.model, ASK))
        await until(lambda: one.prefill.engine.running)
        one.prefill.engine._die("killed")
        await asked
        one.prefill.engine.options = structs.replace(
            one.prefill.engine.options, time_to_first_token_ms=0.0
        )
        await answer(one.model, ASK)  # at once: it does not wait for the restart
        await one.prefill.supervisor.ready()
        await answer(one.model, ASK)
        assert one.handoffs == {"failed": 1, "unavailable": 1, "remote": 1}

    async def test_a_cache_that_does_not_arrive(self, pair, monkeypatch):
        one = await pair()
        real = one.decode._ask_prefill

        async def ask(request, ids):
            params = await real(request, ids)
            _HELD[params["remote_engine_id"]].clear()
            return params

        monkeypatch.setattr(one.decode, "_ask_prefill", ask)
        text, last = await answer(one.model, ASK)
        assert text
        assert last.usage.cached_tokens == 0
        assert one.decode.engine.kv_transfer_failures == 1

    async def test_a_slow_one(self, pair):
        slow = {"engine_kwargs": {"time_to_first_token_ms": 3_600_000}}
        one = await pair(slow, {"experimental_configs": {"prefill_timeout_s": 0.001}})
        await self.check(one, "slow")
        assert one.prefill.engine.running == 0

    async def test_one_that_keeps_failing_is_left_alone(self, pair):
        slow = {"engine_kwargs": {"time_to_first_token_ms": 3_600_000}}
        one = await pair(slow, {"experimental_configs": {"prefill_timeout_s": 0.001}})
        for _ in range(4):
            await answer(one.model, ASK)
        assert one.handoffs == {"slow": 3, "unavailable": 1}

    async def test_a_full_one(self, pair):
        full = {"engine_kwargs": {"time_to_first_token_ms": 3_600_000}}
        one = await pair(
            {**full, "deployment_config": {"max_ongoing_requests": 1, "max_queued_requests": 0}}
        )
        stuck = one.decode.prefill.chat(ASK)
        asked = asyncio.create_task(anext(stuck))
        await until(lambda: one.prefill.engine.running)
        await self.check(one, "unavailable")
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await stuck.aclose()

    async def test_one_that_loads_on_demand_is_woken(self, pair):
        cold = {"deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}}}
        one = await pair(cold)
        await self.check(one, "unavailable")
        await until(lambda: one.prefill.supervisor.phase == "ready")
        await answer(one.model, ASK)
        assert one.handoffs["remote"] == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"engine": "simulated 0"},
            {"connector": "NixlConnector"},
            {"library": "nixl 9"},
        ],
    )
    async def test_an_engine_of_another_kind(self, pair, change):
        one = await pair()
        one.prefill.engine.identity = structs.replace(one.prefill.engine.identity, **change)
        await self.check(one, "mismatch")
        _HELD[one.prefill.engine.identity.engine_id].clear()

    async def test_a_hand_over_without_an_address(self, pair, monkeypatch):
        one = await pair()
        monkeypatch.setattr(one.prefill.engine, "_hold", lambda item: None)
        await self.check(one, "mismatch")

    async def test_one_that_does_not_say_who_it_is(self, pair):
        one = await pair()
        one.prefill.engine.identity = None
        await self.check(one, "mismatch")


class TestCancelling:
    async def test_on_the_prefill_leg(self, pair):
        one = await pair({"engine_kwargs": {"time_to_first_token_ms": 3_600_000}})
        stream = one.model.chat(ASK)
        asked = asyncio.create_task(anext(stream))
        await until(lambda: one.prefill.engine.running)
        assert one.decode.engine.running == 0
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await stream.aclose()
        assert one.idle()
        assert one.prefill.admission.idle
        assert one.decode.admission.idle

    async def test_on_the_decode_leg(self, pair):
        one = await pair(
            decode={"engine_kwargs": {"time_per_token_ms": 1, "output_tokens": 30_000}}
        )
        stream = one.model.chat(structs.replace(ASK, sampling=Sampling(temperature=0.0)))
        await anext(stream)
        assert one.decode.engine.running == 1
        await stream.aclose()
        assert one.idle()
        assert one.decode.admission.idle

    async def test_before_the_cache_was_fetched(self, pair):
        busy = {"max_num_seqs": 1, "time_per_token_ms": 1, "output_tokens": 30_000}
        one = await pair(
            decode={"engine_kwargs": busy, "deployment_config": {"max_ongoing_requests": 2}}
        )
        endless = structs.replace(ASK, sampling=Sampling(temperature=0.0))
        first = one.model.chat(endless)
        await anext(first)
        second = one.model.chat(endless)
        waiting = asyncio.create_task(anext(second))
        await until(lambda: any(_HELD.values()) and one.decode.engine.running == 2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await second.aclose()
        assert not any(_HELD.values())
        await first.aclose()
        assert one.idle()


class TestLife:
    async def test_both_load_on_demand_and_leave_together(self, pair):
        cold = {"deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}}}
        one = await pair(cold, cold)
        assert one.model.state().state == "cold"
        await answer(one.model, ASK)
        await until(lambda: one.prefill.supervisor.phase == "ready")
        await one.model.unload()
        assert [server.supervisor.phase for server in (one.prefill, one.decode)] == ["cold", "cold"]

    async def test_sleep_and_wakeup_are_for_both(self, pair):
        one = await pair()
        await one.model.control("sleep", {})
        assert one.prefill.asleep
        await one.model.control("wakeup", {})
        await answer(one.model, ASK)
        await one.model.control("reset_prefix_cache", {})
        assert one.handoffs == {"remote": 1}

    @pytest.mark.parametrize("method", ["sleep", "reset_prefix_cache"])
    async def test_what_the_prefill_side_did_not_do_is_told(self, pair, monkeypatch, method):
        one = await pair()

        async def refuse(*args, **options):
            raise EngineError("its cache is in use")

        monkeypatch.setattr(one.prefill, method, refuse)
        (told,) = await one.model.control(method, {})
        assert not told["ok"]
        assert told["error"]["message"] == "prefill replica 'local-0': its cache is in use"

    async def test_over_http_with_metrics(self, pair):
        one = await pair()
        app = OpenAiIngress({"m": one.model})
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        ) as client:
            body = {"model": "m", "messages": ASK.messages, "temperature": 0, "max_tokens": 8}
            whole = (await client.post("/v1/chat/completions", json=body)).json()
            stream = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text
            page = (await client.get("/metrics")).text
        assert len(whole["choices"][0]["message"]["content"]) == 8
        assert stream.rstrip().endswith("[DONE]")
        assert 'penstock_prefill_handoffs_total{model_name="m",outcome="remote"} 2.0' in page
        assert 'penstock_engine_kv_transfers_total{model_name="m"} 2.0' in page
        assert 'penstock_engine_prefill_requests_running{model_name="m"} 0.0' in page


class TestConfiguration:
    def test_a_pair_is_one_model(self, tmp_path):
        (tmp_path / "decode.yaml").write_text(
            "model_loading_config: {model_id: m, model_source: simulated}\nllm_engine: simulated\n"
            "engine_kwargs: {kv_transfer_config: {kv_connector: SimulatedConnector}}\n"
        )
        (tmp_path / "pair.yaml").write_text(
            "prefill_config:\n  model_loading_config: {model_id: m, model_source: simulated}\n "
            " llm_engine: simulated\n  engine_kwargs: {kv_transfer_config: {kv_connector:"
            " SimulatedConnector}}\ndecode_config: decode.yaml\nlisten: 127.0.0.1:0\n"
        )
        args = load_serving_args(tmp_path / "pair.yaml")
        (model,) = args.llm_configs
        assert model.prefill_config is not None
        assert model.prefill_config.model_id == "m"
        assert args.listen == "127.0.0.1:0"
        assert isinstance(
            PDServingArgs(prefill_config=config(), decode_config=config()).serving_args(),
            LLMServingArgs,
        )
        serve = "applications: [{args: {prefill_config: decode.yaml, decode_config: decode.yaml}}]"
        (tmp_path / "serve.yaml").write_text(serve)
        assert load_serving_args(tmp_path / "serve.yaml").llm_configs[0].prefill_config is not None

    @pytest.mark.parametrize(
        ("prefill", "told"),
        [
            ({"model_loading_config": {"model_id": "n"}}, "the same model_id"),
            (
                {"model_loading_config": {"model_id": "m", "model_source": "other"}},
                "the same model_source",
            ),
            ({"lora_config": {"dynamic_lora_loading_path": "/a"}}, "the same adapters"),
            (
                {"engine_kwargs": {"kv_transfer_config": None}},
                "prefill_config.engine_kwargs.kv_transfer_config",
            ),
            (
                {"engine_kwargs": {"kv_transfer_config": {"kv_connector": "NixlConnector"}}},
                "the same connector",
            ),
            (
                {"engine_kwargs": {"kv_transfer_config": {"kv_connector": "NixlPushConnector"}}},
                "must know the decode side before",
            ),
            (
                {"engine_kwargs": {"kv_transfer_config": {"kv_connector": "Own"}}},
                "unknown connector",
            ),
        ],
    )
    def test_two_sides_that_do_not_fit(self, prefill, told):
        with pytest.raises(ConfigError, match=told):
            paired(config(**prefill), config())

    def test_a_model_may_name_its_prefill_side_itself(self):
        args = LLMServingArgs.from_dict({"llm_configs": [config(prefill_config=config())]})
        assert LocalModel(args.llm_configs[0]).server.role == "decode"
        with pytest.raises(ConfigError, match="LLMServer has no use for a prefill side"):
            LocalModel(config(prefill_config=config()))

    def test_penstock_serve(self, serving, tmp_path):
        side = {"model_loading_config": LOADING, "llm_engine": "simulated", "engine_kwargs": KV}
        (tmp_path / "pair.yaml").write_text(
            json.dumps({"prefill_config": side, "decode_config": side})
        )
        with serving(str(tmp_path / "pair.yaml")) as server:
            body = {"model": "m", "messages": ASK.messages, "max_tokens": 5}
            handed_over = 'outcome="remote"} 1.0'
            for _ in range(500):  # the server answers before its prefill side is loaded
                answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
                assert answer.json()["usage"]["completion_tokens"] == 5
                if handed_over in (metrics := httpx.get(f"{server.url}/metrics").text):
                    break
            assert handed_over in metrics

    def test_one_side_is_not_a_pair(self):
        with pytest.raises(ConfigError, match="decode_config"):
            PDServingArgs.from_dict({"prefill_config": config()})

    @pytest.mark.parametrize("name", ["prefill_timeout_s", "prefill_min_tokens"])
    def test_wrong_numbers(self, name):
        with pytest.raises(ConfigError, match=name):
            config(experimental_configs={name: "soon"})


def test_a_warning_is_not_repeated(caplog):
    server: Any = LocalModel(paired(config(), config())).server
    for _ in range(3):
        server._say("the prefill side failed")
    assert len(caplog.records) == 1
