"""Ray Serve LLM with an engine of ours, for `ray_serve.py`: run by a Python that has both, and
vLLM, which it imports.

The engine is put in where Ray Serve LLM lets one be put in (`RAYLLM_VLLM_ENGINE_CLS`). Its
interface asks for events as text, and for its direct streaming for an application with the engine's
own routes: that one is what vLLM's is, FastAPI with the same request form, without anything else
that vLLM does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from penstock.engines.base import engine_class
from penstock.engines.tasks import generated
from penstock.openai.framing import ChatFramer
from penstock.openai.responses import Answers, chat_completion
from penstock.types import ChatRequest, Sampling

ENGINE = "BENCH_ENGINE"
"""The variable with our engine's configuration, as JSON."""
INJECTED = "RAYLLM_VLLM_ENGINE_CLS"


class PeerEngine:
    """One of our engines, as Ray Serve LLM's replica calls it."""

    def __init__(self, llm_config: Any) -> None:
        given = json.loads(os.environ[ENGINE])
        loading = given["model_loading_config"]
        self._model = loading["model_id"]
        name = given.get("llm_engine", "openvino")
        self._engine = engine_class(name)(
            loading["model_source"], engine_kwargs=given.get("engine_kwargs")
        )

    async def start(self) -> None:
        """Load the model."""
        await self._engine.start()

    def routing_stats(self) -> dict[str, Any]:
        """Nothing for its router."""
        return {}

    async def check_health(self) -> None:
        """Raise if the engine is dead."""
        await self._engine.check_health()

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Events as text, those that are there together in one; or the whole answer."""
        sampling = Sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature or 0.0,
            ignore_eos=request.ignore_eos,
        )
        name = uuid.uuid4().hex
        batches = generated(
            self._engine, ChatRequest(request.messages, sampling=sampling, request_id=name)
        )
        about: dict[str, Any] = {
            "id": f"chatcmpl-{name}",
            "created": int(time.time()),
            "model": self._model,
        }
        if not request.stream:
            from ray.llm._internal.serve.core.configs.openai_api_models import (
                ChatCompletionResponse,
            )

            answers = await Answers.of(batches)
            yield ChatCompletionResponse(**chat_completion(answers, **about))
            return
        framer = ChatFramer(**about)
        yield framer.open().decode()
        async with aclosing(batches):
            async for batch in batches:
                yield b"".join([framer.frame(delta) for delta in batch]).decode()
        yield framer.close().decode()

    async def build_asgi_app(self) -> Any:
        """The application of direct streaming."""
        from fastapi import FastAPI
        from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest
        from starlette.responses import StreamingResponse

        app = FastAPI()

        async def chat_completions(request: Any) -> StreamingResponse:
            return StreamingResponse(self.chat(request), media_type="text/event-stream")

        chat_completions.__annotations__["request"] = ChatCompletionRequest
        app.post("/v1/chat/completions")(chat_completions)
        return app


def application(model: dict[str, Any]) -> Any:
    """The model behind Ray Serve LLM's ingress."""
    own = model.get("llm_engine") == "vllm"
    config = LLMConfig(
        model_loading_config=model["model_loading_config"],
        llm_engine="vLLM",
        engine_kwargs=model["engine_kwargs"] if own else {},
        placement_group_config={"bundles": [{"CPU": 1}]},
        accelerator_config={"kind": "cpu"},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 1000},
    )
    return build_openai_app({"llm_configs": [config]})


def inject(model: dict[str, Any]) -> None:
    """Let the replicas of a Ray that is started from here on have our engine, unless it is vLLM:
    that one they have.
    """
    os.environ[ENGINE] = json.dumps(model)
    if model.get("llm_engine") != "vllm":
        os.environ[INJECTED] = "ray_serve_peer:PeerEngine"


def main() -> None:
    """Serve until a SIGTERM. Prints the port when it can be asked."""
    model = json.loads(os.environ[ENGINE])
    inject(model)
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(model))
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    print(f"Listening on http://127.0.0.1:{port}", flush=True)
    told.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main()
