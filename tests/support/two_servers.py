"""vLLM's own server and ours around the same engine, and what their answers say, whatever form they
come in.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from penstock.engines.base import LLMEngine
from penstock.engines.vllm.options import installed
from penstock.llm_config import LLMConfig
from penstock.serve.api.ingress import OpenAiIngress
from penstock.serve.models.local import LocalModel

MARKS = ("<think>", "</think>")


class Servers:
    """Clients of both servers, ours first."""

    def __init__(self, clients: dict[str, httpx.AsyncClient]) -> None:
        self.clients = clients  # by the name that each has for the model

    async def ask(
        self, path: str, body: Mapping[str, Any], stream: bool = False
    ) -> list[httpx.Response]:
        """What each answers."""
        if path == "models":
            return [await client.get(f"/v1/{path}") for client in self.clients.values()]
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        return [
            await client.post(f"/v1/{path}", json={"model": name, **body, **options})
            for name, client in self.clients.items()
        ]


@asynccontextmanager
async def two_servers(
    engine: LLMEngine, options: Mapping[str, Any]
) -> AsyncGenerator[Servers, None]:
    """Both servers around an engine that runs with these `engine_kwargs`. It goes on running
    afterwards.
    """
    loading = {"model_id": "ours", "model_source": engine.model_source}
    config = {"model_loading_config": loading, "llm_engine": "vLLM", "engine_kwargs": dict(options)}
    served = LocalModel(LLMConfig.from_dict(config), engine=engine)
    await served.start()
    apps = {"ours": OpenAiIngress({"ours": served}), engine.model_source: engine.build_asgi_app()}
    clients = {
        name: httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=60
        )
        for name, app in apps.items()
    }
    yield Servers(clients)
    for client in clients.values():
        await client.aclose()


async def meanings(
    servers: Servers, path: str, body: Mapping[str, Any], stream: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both say, ours first, in so far as vLLM's versions agree: in a stream 0.29 calls a call
    that the limit has cut off complete, and gives the marks of reasoning no log-probabilities. All
    leave such a mark where it comes with the next token in one piece. All say of an answer in one
    piece that it ended with its call, where the limit has cut it behind the call; in a stream they
    name the limit, as ours does always.
    """
    ours, theirs = [meaning(reply, stream) for reply in await servers.ask(path, body, stream)]
    for number, choice in theirs["choices"].items():
        choice["reasoning"] = choice["reasoning"].removeprefix(MARKS[0])
        reason = ours["choices"][number]["reason"]
        if not stream and (reason, choice["reason"]) == ("length", "tool_calls"):
            choice["reason"] = reason
    if stream and installed().version.startswith("0.29."):
        for number, choice in ours["choices"].items():
            if choice["calls"] and choice["reason"] == "length":
                choice["reason"] = theirs["choices"][number]["reason"]
            choice["logprobs"] = [entry for entry in choice["logprobs"] if entry[0] not in MARKS]
    return ours, theirs


def meaning(reply: httpx.Response, stream: bool) -> dict[str, Any]:
    """What a reply says: the choices, and the usage. How much of a text stands in one event is a
    matter of time, and counts for nothing; in which order a choice's events say what does count.
    """
    assert reply.status_code == 200, reply.text
    if not stream:
        bodies = [reply.json()]
    else:
        data = [
            line.removeprefix("data: ")
            for line in reply.text.splitlines()
            if line.startswith("data: ")
        ]
        assert data.pop() == "[DONE]"
        bodies = [json.loads(one) for one in data]
        # The chunk of the usage, which comes last and has nothing else.
        assert not bodies[-1]["choices"]
        assert all(body["id"] == bodies[0]["id"] for body in bodies)
        assert all(not body.get("usage") for body in bodies[:-1])
    choices: dict[int, Any] = {}
    prompt_ids: list[int] = []
    for body in bodies:
        for part in body["choices"]:
            whole = choices.setdefault(part["index"], _nothing())
            assert whole["reason"] is None, "a choice went on after its end"
            message = part.get("delta") or part.get("message") or {"content": part.get("text")}
            whole["role"] = message.get("role") or whole["role"]
            whole["text"] += message.get("content") or ""
            whole["reasoning"] += message.get("reasoning") or ""
            said = [name for name in ("role", "reasoning", "content") if message.get(name)]
            for number, call in enumerate(message.get("tool_calls") or []):
                known = whole["calls"].setdefault(call.get("index", number), ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
                said.append(f"call {call.get('index', number)}")
            whole["reason"] = part["finish_reason"] or whole["reason"]
            for name in said if stream else ():
                if name not in whole["order"][-1:]:
                    whole["order"].append(name)
            whole["logprobs"] += _logprobs(part.get("logprobs"))
            whole["ids"] += part.get("token_ids") or []
            prompt_ids = body.get("prompt_token_ids") or part.get("prompt_token_ids") or prompt_ids
    usage = bodies[-1]["usage"]
    return {
        "choices": choices,
        "prompt_ids": prompt_ids,
        "usage": [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]],
    }


def _nothing() -> dict[str, Any]:
    return {
        "role": None,
        "text": "",
        "reasoning": "",
        "calls": {},
        "reason": None,
        "logprobs": [],
        "ids": [],
        "order": [],
    }


def _logprobs(told: Mapping[str, Any] | None) -> list[Any]:
    if not told:
        return []
    if "content" in told:
        entries = [
            (entry["token"], entry["logprob"], entry["top_logprobs"])
            for entry in told["content"] or []
        ]
        return [
            (token, round(value, 3), [(one["token"], round(one["logprob"], 3)) for one in top])
            for token, value, top in entries
        ]
    return [
        (token, None if value is None else round(value, 3))
        for token, value in zip(told["tokens"], told["token_logprobs"], strict=True)
    ]
