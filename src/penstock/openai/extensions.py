"""Bodies for scores, ranks, classes and tokens, in vLLM's and Jina's forms: OpenAI has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from penstock.errors import RequestError
from penstock.openai.requests import Count, TokenId, input_texts
from penstock.openai.responses import prompt_usage
from penstock.types import Classifications, ClassifyRequest, RerankRequest, Scores, Usage


class ScoreBody(Struct, kw_only=True):
    """Body of `POST /v1/score`: one text against one or many, or as many pairs."""

    model: str = ""
    text_1: str | list[str]
    text_2: str | list[str]
    user: str | None = None

    def requests(self, *, request_id: str = "") -> list[RerankRequest]:
        """One request for each distinct text on the left side."""
        left = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        right = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if not left or not right:
            raise RequestError(
                "text_1 and text_2 must not be empty", param="text_1" if not left else "text_2"
            )
        if len(left) == 1:
            return [RerankRequest(left[0], right, request_id)]
        if len(left) != len(right):
            raise RequestError(
                f"text_1 must be one text or as many as text_2: {len(left)} and {len(right)} were"
                " given",
                param="text_1",
            )
        pairs = enumerate(zip(left, right, strict=True))
        return [
            RerankRequest(one, [other], f"{request_id}-{number}") for number, (one, other) in pairs
        ]


class RerankDocument(Struct, kw_only=True):
    """A document to rerank, given as an object instead of as text."""

    text: str


class RerankBody(Struct, kw_only=True):
    """Body of `POST /v1/rerank`: a query and the documents to order by it."""

    model: str = ""
    query: str
    documents: list[str | RerankDocument]
    top_n: Count | None = None
    return_documents: bool = True
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]

    def request(self, *, request_id: str = "") -> RerankRequest:
        if not self.documents:
            raise RequestError("documents must not be empty", param="documents")
        return RerankRequest(self.query, self.texts, request_id)


class ClassifyBody(Struct, kw_only=True):
    """Body of `POST /classify`: one text or many."""

    model: str = ""
    input: str | list[str]
    user: str | None = None

    def request(self, *, request_id: str = "") -> ClassifyRequest:
        return ClassifyRequest(input_texts(self.input), request_id)


class TokenizeBody(Struct, kw_only=True):
    """Body of `POST /tokenize`: a text to turn into token ids."""

    model: str = ""
    prompt: str


class DetokenizeBody(Struct, kw_only=True):
    """Body of `POST /detokenize`: token ids to turn back into text."""

    model: str = ""
    tokens: list[TokenId]


def score_list(scores: Sequence[Scores], *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of a score answer: one number a pair, in the order of the pairs."""
    values = [value for one in scores for value in one.scores]
    return {
        "id": id,
        "object": "list",
        "created": created,
        "model": model,
        "data": [
            {"index": index, "object": "score", "score": value}
            for index, value in enumerate(values)
        ],
        "usage": prompt_usage(sum((one.usage for one in scores), Usage())),
    }


def rerank_list(scores: Scores, body: RerankBody, *, id: str, model: str) -> dict[str, Any]:
    """Body of a rerank answer: at most `top_n` documents, the most relevant first."""
    texts = body.texts
    best = sorted(enumerate(scores.scores), key=lambda pair: (-pair[1], pair[0]))[: body.top_n]
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score} for index, score in best
    ]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return {"id": id, "model": model, "results": results, "usage": prompt_usage(scores.usage)}


def class_list(classes: Classifications, *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of a classification answer: label and probabilities of each text, in order."""
    return {
        "id": id,
        "object": "list",
        "created": created,
        "model": model,
        "data": [
            {
                "index": index,
                "label": one.label,
                "probs": one.probabilities,
                "num_classes": len(one.probabilities),
            }
            for index, one in enumerate(classes.items)
        ],
        "usage": prompt_usage(classes.usage),
    }
