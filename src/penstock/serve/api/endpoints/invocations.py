"""`POST /invocations`, the one path that Amazon SageMaker asks for everything. The body's form says
what is wanted, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.decisions.openai_form import DecisionBody
from penstock.openai.extensions import ClassifyBody, RerankBody, ScoreBody
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody, parse_body
from penstock.serve.api.endpoints import generation, texts
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import decode_body

_SHAPES: tuple[tuple[str, type[Struct], Callable[..., Awaitable[Response]]], ...] = (
    ("messages", ChatBody, generation.chat_completions),
    ("prompt", CompletionBody, generation.completions),
    ("questions", DecisionBody, texts.decisions),
    ("labels", ClassifyBody, texts.classify),
    ("input", EmbeddingBody, texts.embeddings),
    ("text_1", ScoreBody, texts.score),
    ("query", RerankBody, texts.rerank),
)
"""The parameter that only a body of this form has, the form, and the endpoint that answers it."""
FORMS: tuple[type[Struct], ...] = tuple(form for _, form, _ in _SHAPES)


async def invocations(exchange: Exchange) -> Response:
    """Answer a body of any form: a chat, a completion, embeddings or classes, a score, a rank."""
    body: Any = decode_body(await exchange.read_json(), Any)
    for name, form, answer in _SHAPES:
        if isinstance(body, dict) and name in body:
            try:
                return await answer(exchange, parse_body(form, body))
            except UnsupportedError:
                if form is not EmbeddingBody or not body.keys() <= _NAMES:
                    raise
            return await texts.classify(exchange, parse_body(ClassifyBody, body))
    names = ", ".join(name for name, _, _ in _SHAPES)
    raise RequestError(f"the body has no form that is known here: it needs one of {names}")


_NAMES = frozenset(ClassifyBody.__struct_fields__)
