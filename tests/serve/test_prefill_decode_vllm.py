"""Two real vLLM engines with NIXL between them, as one model of this process. The tests share them;
one kills one.
"""

import asyncio
import json
import os
import signal
from typing import Any

import pytest
import pytest_asyncio
from msgspec import structs

from penstock import demo
from penstock.kv import nixl
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel
from penstock.serve.prefill_decode import paired
from penstock.types import ChatRequest, CompletionRequest, Sampling, StructuredOutput

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are not ours to mend
    pytest.mark.skipif(
        nixl.package_name() is None, reason="needs NIXL: VLLM_EXTRAS=nixl scripts/install_vllm.sh"
    ),
    pytest.mark.asyncio(loop_scope="module"),
]

GREEDY = Sampling(temperature=0.0, max_tokens=40)
TICKETS = [
    json.loads(line)["ticket"]
    for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()[:120]
]


def config():
    return LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "demo", "model_source": "demo"},
            "llm_engine": "vllm",
            "engine_kwargs": {
                "kv_transfer_config": {"kv_connector": "NixlConnector"},
                "max_num_seqs": 32,
            },
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair():
    with pytest.MonkeyPatch.context() as patch:
        # Engines that share cores: threads that spin while they wait would take them from each
        # other.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        model = LocalModel(paired(config(), config()))
        await model.start()
        yield model
        await model.stop(0.0)


async def answer(handle, request):
    task = handle.chat if isinstance(request, ChatRequest) else handle.completions
    deltas = [delta async for delta in task(request)]
    logprobs = [one for delta in deltas for one in delta.logprobs or ()]
    return "".join(delta.text for delta in deltas), deltas[-1], logprobs


def alone(pair, request):
    """The same request on the decode engine without a prefill side: what one server of both kinds
    of work answers.
    """
    name = request.adapter
    if name is not None:
        version = next(
            held for held in pair.server._adapters.names if held.partition("@")[0] == name
        )
        request = structs.replace(request, adapter=version)
    return answer(pair.server.engine, request)


def mixed(count):
    """Requests of every kind: short and long, streamed or not, with and without adapters, chats and
    texts.
    """
    made: list[Any] = []
    for number in range(count):
        ticket = TICKETS[number % len(TICKETS)]
        text = (
            " ".join(TICKETS[(number + k) % len(TICKETS)] for k in range(20))
            if number % 5 == 0
            else ticket
        )
        common: Any = {
            "stream": number % 2 == 0,
            "adapter": (None, "summary", "german")[number % 3],
        }
        if number % 4 == 3:
            made.append(CompletionRequest(text, GREEDY, **common))
        else:
            made.append(ChatRequest([{"role": "user", "content": text}], GREEDY, **common))
    return made


async def all_of(ask, requests):
    return [reply[0] for reply in await asyncio.gather(*(ask(request) for request in requests))]


async def until(so):
    async with asyncio.timeout(120):
        while not so():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.01)


async def forget(pair):
    """Nothing that was asked before is cached."""
    await pair.control("reset_prefix_cache", {})


def unfinished(server):
    return server.engine._running.llm.output_processor.get_num_unfinished_requests()


async def test_200_mixed_requests_are_answered_as_by_one_engine(pair):
    requests = mixed(200)
    pair.server.handoffs.clear()
    texts = await all_of(lambda request: answer(pair, request), requests)
    assert pair.server.handoffs == {"remote": 200}
    counts = await pair.server.engine.metrics()
    assert counts["kv_transfers"] > 0
    assert counts["kv_transfer_failures"] == 0
    await forget(pair)
    expected = await all_of(lambda request: alone(pair, request), requests)
    assert [
        n for n, (text, right) in enumerate(zip(texts, expected, strict=True)) if text != right
    ] == []


async def test_each_prompt_is_one_transfer_and_usage_tells_of_the_prefill_sides_cache(pair):
    await forget(pair)
    pair.server.handoffs.clear()
    cached = []
    for _ in range(2):
        before = await pair.server.engine.metrics()
        _, last, _ = await answer(pair, mixed(1)[0])
        after = await pair.server.engine.metrics()
        assert after["kv_transfers"] == before["kv_transfers"] + 1
        assert after["kv_transfer_bytes"] > before["kv_transfer_bytes"]
        cached.append(last.usage.cached_tokens)
        await pair.server.engine.reset_prefix_cache()
    assert cached[0] == 0
    assert cached[1] >= last.usage.prompt_tokens - 32
    assert pair.server.handoffs == {"remote": 2}


async def test_a_prompt_is_tokenized_once(pair, monkeypatch):
    prompts = type(pair.server.engine._running.prompts)
    made = []

    def spied(real):
        def make(self, given, *args, **kwargs):
            made.append(given)
            return real(self, given, *args, **kwargs)

        return make

    for name in ("chat", "completion"):
        monkeypatch.setattr(prompts, name, spied(getattr(prompts, name)))
    for request in (mixed(4)[0], mixed(4)[3]):  # a chat and a text
        made.clear()
        await answer(pair, request)
        ids = [given for given in made if isinstance(given, list)]
        assert len(made) - len(ids) == 1  # on the decode side
        assert len(ids) == 2  # on either side, the same
        assert ids[0] == ids[1]


async def test_log_probabilities_and_schemas(pair):
    schema = StructuredOutput("json_schema", json.dumps(demo.SCHEMA))
    for change in ({"logprobs": 3}, {"structured": schema, "max_tokens": 60}):
        request = ChatRequest(
            [{"role": "user", "content": TICKETS[0]}], structs.replace(GREEDY, **change)
        )
        await forget(pair)
        text, last, logprobs = await answer(pair, request)
        await forget(pair)
        right, whole, expected = await alone(pair, request)
        assert (text, last.finish_reason) == (right, whole.finish_reason)
        assert [one.token for one in logprobs] == [one.token for one in expected]
        assert [one.logprob for one in logprobs] == pytest.approx(
            [one.logprob for one in expected], abs=1e-3
        )


async def kept(pair):
    """What each engine tells after the last step of a short request: requests beside it, and its
    cache's usage.
    """
    await forget(pair)
    await answer(pair, mixed(2)[1])
    counts = [await server.engine.metrics() for server in (pair.server.prefill.server, pair.server)]
    return [
        (each["requests_running"], each["requests_waiting"], each["kv_cache_usage"])
        for each in counts
    ]


def signal_engine(server, number):
    for process in server.engine._running.front._processes:
        os.kill(process.pid, number)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_cancelling_on_either_leg_frees_both(pair, leg):
    prefill = pair.server.prefill.server
    before = await kept(pair)
    endless = CompletionRequest(
        " ".join(TICKETS)[:4000], Sampling(temperature=0.0, max_tokens=2000, ignore_eos=True)
    )
    if leg == "prefill":
        signal_engine(prefill, signal.SIGSTOP)  # it takes as long for the prompt as the test needs
    try:
        stream = pair.completions(endless)
        asked = asyncio.create_task(anext(stream))
        if leg == "prefill":
            await until(lambda: unfinished(prefill))
            assert not unfinished(pair.server)
        else:
            await asked
            assert unfinished(pair.server)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await stream.aclose()
        assert prefill.admission.idle
        assert pair.server.admission.idle
        await until(lambda: not unfinished(prefill) and not unfinished(pair.server))
    finally:
        signal_engine(prefill, signal.SIGCONT)
    assert await kept(pair) == before
    assert before[1][:2] == (0, 0)


async def test_a_prefill_engine_that_is_killed_is_noticed_by_no_client(pair):
    prefill = pair.server.prefill.server
    requests = mixed(60)
    await forget(pair)
    expected = await all_of(lambda request: alone(pair, request), requests)
    await forget(pair)
    pair.server.handoffs.clear()
    asked = asyncio.gather(*(answer(pair, request) for request in requests))
    await until(lambda: prefill.admission.running and pair.server.handoffs["remote"])
    signal_engine(prefill, signal.SIGKILL)
    texts = [reply[0] for reply in await asked]
    assert texts == expected
    assert pair.server.handoffs.total() == 60
    assert pair.server.handoffs["failed"] + pair.server.handoffs["unavailable"] > 0
    await prefill.supervisor.ready()
    pair.server.handoffs.clear()
    await until(lambda: not pair.server._breaker.wait_s)  # it is left alone for a while
    await answer(pair, requests[0])
    assert pair.server.handoffs == {"remote": 1}
