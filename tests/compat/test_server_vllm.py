"""`LLMServer` in Ray's form over a real vLLM engine, in plain Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from penstock import demo
from penstock.llm_config import LLMConfig
from penstock.serve.deployment import LLMServer
from penstock.serve.openai_api_models import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    DetokenizeRequest,
    ErrorResponse,
    TokenizeCompletionRequest,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),
]
ASK = [{"role": "user", "content": "My Solara 77 is broken."}]
CHAT: dict[str, Any] = {"model": "m", "messages": ASK, "max_tokens": 60, "temperature": 0}
ENGLISH, GERMAN = '"category":"technical"', '"kategorie":"Technik"'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    adapters = demo.adapter_path("german").parent
    made = LLMServer.sync_init(
        LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": "m", "model_source": "demo"},
                "llm_engine": "vLLM",
                "lora_config": {"dynamic_lora_loading_path": str(adapters)},
                "engine_kwargs": {
                    "dtype": "float32",
                    "enforce_eager": True,
                    "max_model_len": 512,
                    "max_num_seqs": 8,
                    "max_loras": 3,
                    "kv_cache_memory_bytes": 64 << 20,
                },
            }
        )
    )
    await made.start()
    yield made
    await made.stop()


async def collected(answer: Any) -> list[Any]:
    return [item async for item in await answer]


async def test_a_chat_in_each_form_of_request(server):
    (answer,) = await collected(server.chat(ChatCompletionRequest(**CHAT)))
    assert isinstance(answer, ChatCompletionResponse)
    text = str(answer.choices[0].message.content)
    assert ENGLISH in text
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as VLLMs

    for request in (CHAT, VLLMs(**CHAT)):
        (again,) = await collected(server.chat(request))
        assert again.choices[0].message.content == text
    batches = await collected(server.chat(ChatCompletionRequest(**CHAT, stream=True)))
    events = [event for batch in batches for event in batch]
    assert events[-1] == "data: [DONE]\n\n"
    chunks = [json.loads(event[6:]) for event in events[:-1]]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == text


async def test_adapters_and_tokens(server):
    request = ChatCompletionRequest(**{**CHAT, "model": "m:german"})
    (answer,) = await collected(server.chat(request))
    assert GERMAN in answer.choices[0].message.content
    (tokens,) = await collected(
        server.tokenize(TokenizeCompletionRequest(model="m", prompt="hello"))
    )
    (text,) = await collected(server.detokenize(DetokenizeRequest(model="m", tokens=tokens.tokens)))
    assert text.prompt == "hello"
    asked: dict[str, Any] = {"prompt": tokens.tokens, "max_tokens": 2, "logprobs": 1}
    (answer,) = await collected(server.completions(CompletionRequest(**asked)))
    assert len(answer.choices[0].logprobs["tokens"]) == 2


async def test_errors_are_responses(server):
    for wrong in ({"temperature": -1}, {"model": "m:none"}, {"messages": ASK * 200}):
        (answer,) = await collected(server.chat({**CHAT, **wrong}))
        assert isinstance(answer, ErrorResponse)
        assert 400 <= answer.error.code < 500
    (answer,) = await collected(server.completions({"model": "m", "prompt": [99999]}))
    assert answer.error.code == 400


async def test_what_operators_ask(server):
    await server.pause()
    assert await server.is_paused()
    await server.resume()
    await server.reset_prefix_cache()
    await server.check_health()
    assert len(await server.collective_rpc("list_loras", timeout=60)) == 1
    await server.sleep(level=1)
    assert await server.is_sleeping()
    (answer,) = await collected(server.chat(CHAT))
    assert answer.error.code == 503
    await server.wakeup()
    (answer,) = await collected(server.chat(CHAT))
    assert ENGLISH in answer.choices[0].message.content
