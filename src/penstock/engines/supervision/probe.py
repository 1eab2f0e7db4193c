"""Asks an engine the least that can be asked: whether it lives, where requests only see it die."""

from __future__ import annotations

from penstock.engines.base import LLMEngine
from penstock.engines.tasks import generated
from penstock.errors import EngineDeadError, PenstockError
from penstock.openai.responses import Answers
from penstock.types import ChatRequest, ClassifyRequest, CompletionRequest, EmbeddingRequest, RerankRequest, Sampling

TEXT = "Hi"


async def probe(engine: LLMEngine) -> None:
    """Return if the engine answers a request of ours, well or not. Raises `EngineDeadError` if that ends it too."""
    tasks = engine.capabilities.tasks
    sampling = Sampling(max_tokens=1, temperature=0.0)
    try:
        if "completions" in tasks:
            await Answers.of(generated(engine, CompletionRequest(TEXT, sampling, stream=False)))
        elif "chat" in tasks:
            chat = ChatRequest([{"role": "user", "content": TEXT}], sampling, stream=False)
            await Answers.of(generated(engine, chat))
        elif "embeddings" in tasks:
            await engine.embeddings(EmbeddingRequest([TEXT]))
        elif "rerank" in tasks:
            await engine.rerank(RerankRequest(TEXT, [TEXT]))
        elif "classify" in tasks:
            await engine.classify(ClassifyRequest([TEXT]))
        else:
            await engine.check_health()
    except EngineDeadError:
        raise
    except PenstockError:
        pass  # it lives, and refuses
