"""A scripted server that speaks as SGLang's does (0.5.23, as read in its sources)."""

import pytest

from penstock.errors import ContextLengthError, UnsupportedError
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import (
    ClassifyRequest,
    CompletionRequest,
    RerankRequest,
    Sampling,
    StructuredOutput,
)
from scripted_api import chunk, remote, sse

CARD = {"id": "m", "owned_by": "sglang", "root": "m", "parent": None, "max_model_len": 4096}
ADAPTER = {
    "id": "french",
    "owned_by": "sglang",
    "root": "/adapters/french",
    "parent": "m",
    "max_model_len": None,
}
SAID = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop", "matched_stop": 2}]}


@pytest.fixture
def server(script):
    script.models = {"object": "list", "data": [CARD, ADAPTER]}
    script.answers = [SAID]
    return script


def whole(text="hi", sampling=None, **fields):
    return chat_request(text, sampling or Sampling(), stream=False, **fields)


async def test_its_context_and_constraints_are_known(server):
    async with remote(server, model="auto") as engine:
        assert engine.capabilities.context_length == 4096
        assert engine.capabilities.structured == {"json_schema", "json_object", "regex", "grammar"}


async def test_a_regex_stands_in_the_body(server):
    async with remote(server) as engine:
        sampling = Sampling(structured=StructuredOutput("regex", "a+"))
        await answer(engine, whole(sampling=sampling))
        server.answers = [{"choices": [{"text": "aa", "finish_reason": "stop"}]}]
        await answer(engine, CompletionRequest("b", sampling, stream=False))
    for _, body in server.asked:
        assert body["regex"] == "a+"
        assert "structured_outputs" not in body


async def test_an_adapter_is_asked_for_beside_its_base(server):
    async with remote(server) as engine:
        await answer(engine, whole(adapter="french"))
    assert server.asked[0][1]["model"] == "m:french"


async def test_what_it_would_pass_over_is_refused(server):
    async with remote(server) as engine:
        with pytest.raises(UnsupportedError, match="no chat_template"):
            await answer(engine, whole(chat_template="{{ messages }}"))
    assert server.asked == []


@pytest.mark.parametrize("stream", [True, False])
async def test_the_stop_string_has_another_name(server, stream):
    choice = {"index": 0, "finish_reason": "stop", "matched_stop": "END"}
    server.answers = [{"choices": [{**choice, "message": {"content": "a"}}]}]
    if stream:
        server.answers = [sse(chunk(content="a"), {"choices": [{**choice, "delta": {}}]})]
    async with remote(server) as engine:
        deltas = await deltas_of(engine, chat_request("hi", stream=stream))
    assert deltas[-1].stop == "END"


async def test_scores_are_its_reranks_and_come_sorted_in_a_bare_list(server):
    server.answers = [
        [{"score": 0.9, "document": "y", "index": 1}, {"score": 0.2, "document": "x", "index": 0}]
    ]
    async with remote(server) as engine:
        for ask in (engine.score, engine.rerank):
            assert (await ask(RerankRequest("q", ["x", "y"]))).scores == [0.2, 0.9]
    assert [path for path, _ in server.asked] == ["/v1/rerank"] * 2
    assert server.asked[0][1] == {"model": "m", "query": "q", "documents": ["x", "y"]}


async def test_classes_are_asked_for_at_its_openai_path(server):
    server.answers = [{"data": [{"index": 0, "label": "b", "probs": [0.1, 0.9], "num_classes": 2}]}]
    async with remote(server) as engine:
        assert (await engine.classify(ClassifyRequest(["t"]))).items[0].label == "b"
    assert server.asked[0][0] == "/v1/classify"


async def test_tokens_and_texts(server):
    server.answers = [{"tokens": [1, 2], "count": 2, "max_model_len": 4096}, {"text": "ab"}]
    async with remote(server) as engine:
        assert await engine.tokenize("ab") == [1, 2]
        assert await engine.detokenize([1, 2]) == "ab"
    assert server.asked[0] == (
        "/tokenize",
        {"model": "m", "prompt": "ab", "add_special_tokens": False},
    )


@pytest.mark.parametrize("streamed", [True, False])
async def test_its_errors_have_no_envelope_but_in_streams(server, streamed):
    from aiohttp import web

    told = "The input (9000 tokens) is longer than the model's context length (4096 tokens)."
    said = {
        "object": "error",
        "message": told,
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }

    async def refuse(request):
        return web.json_response(said, status=400)

    server.answers = [sse({"error": said}) if streamed else refuse]
    async with remote(server) as engine:
        with pytest.raises(ContextLengthError, match="9000 tokens"):
            await deltas_of(engine, chat_request("hi", stream=streamed))
