"""Bodies for scores, ranks, classes and tokens, in vLLM's and Jina's forms: OpenAI has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.requests import (
    TokenId,
    begins_turn,
    check_messages,
    input_texts,
)
from penstock.openai.responses import encoded_vector, prompt_usage
from penstock.openai.tool_forms import plain_messages
from penstock.openai.tools import check_tools
from penstock.types import (
    ChatRequest,
    ChoiceQuestion,
    Classification,
    Classifications,
    ClassifyRequest,
    DecideRequest,
    Decisions,
    EmbeddingRequest,
    Message,
    Option,
    RerankRequest,
    Scores,
    SparseVector,
    TokenizeRequest,
    Usage,
)

Texts = str | list[str]
_SIDES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


class ScoreBody(Struct, kw_only=True):
    """Body of `POST /v1/score`: one text against one or many, or as many pairs. The two sides have
    one of four pairs of names, as in vLLM.
    """

    model: str = ""
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    user: str | None = None

    def requests(self, *, request_id: str = "") -> list[RerankRequest]:
        """One request for each distinct text on the left side."""
        given = {name for pair in _SIDES for name in pair if getattr(self, name) is not None}
        names = next((pair for pair in _SIDES if given == set(pair)), None)
        if names is None:
            raise _no_pair(given)
        left, right = (_listed(getattr(self, name)) for name in names)
        if not left or not right:
            raise RequestError(
                f"{names[0]} and {names[1]} must not be empty", param=names[bool(left)]
            )
        if len(left) == 1:
            return [RerankRequest(left[0], right, request_id)]
        if len(left) != len(right):
            raise RequestError(
                f"{names[0]} must be one text or as many as {names[1]}: {len(left)} and"
                f" {len(right)} were given",
                param=names[0],
            )
        pairs = enumerate(zip(left, right, strict=True))
        return [
            RerankRequest(one, [other], f"{request_id}-{number}") for number, (one, other) in pairs
        ]


def _no_pair(given: set[str]) -> RequestError:
    """The error for names that are no pair: too many, too few, or of two pairs."""
    whole = next((pair for pair in _SIDES if given > set(pair)), None)
    if whole is not None:
        odd = min(given - set(whole))
        return RequestError(f"{odd} does not go with {' and '.join(whole)}", param=odd)
    pair = next((pair for pair in _SIDES if given & set(pair)), _SIDES[0])
    missing = next(name for name in pair if name not in given)
    return RequestError(f"give {' and '.join(pair)}: {missing} is missing", param=missing)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


class RerankDocument(Struct, kw_only=True, forbid_unknown_fields=True):
    """A document to rerank, given as an object instead of as text."""

    text: str


class RerankBody(Struct, kw_only=True):
    """Body of `POST /v1/rerank`: a query and the documents to order by it. `top_n` 0 or None keeps
    all.
    """

    model: str = ""
    query: str
    documents: str | list[str | RerankDocument]
    top_n: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_documents: bool = True
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in _listed(self.documents)]

    def request(self, *, request_id: str = "") -> RerankRequest:
        if not self.texts:
            raise RequestError("documents must not be empty", param="documents")
        return RerankRequest(self.query, self.texts, request_id)


class ClassifyBody(Struct, kw_only=True):
    """Body of `POST /classify`: one text or many. A model that generates is given the `labels`, and
    `instructions` if it needs them.
    """

    names: ClassVar = {"questions": "labels", "messages": "input", "prompt": "input"}
    model: str = ""
    input: str | list[str]
    labels: list[str] | None = None
    instructions: str = "Which label fits the text?"
    user: str | None = None

    def request(self, *, request_id: str = "") -> ClassifyRequest:
        return ClassifyRequest(input_texts(self.input), request_id)

    def decisions(self, *, request_id: str = "") -> list[DecideRequest]:
        """The choice among `labels`, for each text."""
        question = ChoiceQuestion(self.instructions, tuple(map(Option, self.labels or ())))
        return [
            DecideRequest(text, (question,), request_id=f"{request_id}-{number}")
            for number, text in enumerate(input_texts(self.input))
        ]


EMBED_TASKS: dict[str, Literal["dense", "multi", "sparse"]] = {
    "embed": "dense",
    "token_embed": "multi",
    "sparse_embed": "sparse",
}
"""Values of `task`, with the kind of vectors that each asks for."""


class PoolingBody(EmbeddingBody, kw_only=True):
    """Body of `POST /pooling`: that of `/v1/embeddings`, and a `task`: "embed", "token_embed" (a
    vector for each token), "sparse_embed" (token ids and weights, which vLLM does not have) or
    "classify". None takes what the model does.
    """

    task: str | None = None

    def request(self, *, request_id: str = "") -> EmbeddingRequest:
        request = super().request(request_id=request_id)
        return msgspec.structs.replace(request, vectors=EMBED_TASKS.get(self.task or "", "dense"))

    def check_task(self) -> None:
        """Raise `UnsupportedError` for another task."""
        if self.task is not None and self.task not in ("classify", *EMBED_TASKS):
            raise UnsupportedError(
                f"task {self.task[:50]!r} is not supported here: it is embed, token_embed,"
                " sparse_embed or classify",
                param="task",
            )


class TokenizeBody(Struct, kw_only=True):
    """Body of `POST /tokenize`: a text or a conversation to turn into token ids.

    `add_special_tokens` defaults to true for a text. For a conversation it defaults to false,
    because the chat template writes them.
    """

    model: str = ""
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    user: str | None = None

    def request(self) -> TokenizeRequest:
        names, special = bool(self.return_token_strs), self.add_special_tokens
        if (self.prompt is None) is (self.messages is None):
            raise RequestError("give either prompt or messages", param="prompt")
        if self.prompt is not None:
            self._check_text()
            return TokenizeRequest(self.prompt, None, special is not False, names)
        assert self.messages is not None
        generates = begins_turn(self.add_generation_prompt, self.continue_final_message)
        check_messages(self.messages)
        check_tools(self.tools, None)
        chat = ChatRequest(
            plain_messages(self.messages),
            tools=self.tools or None,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            add_generation_prompt=generates,
            continue_final_message=self.continue_final_message,
        )
        return TokenizeRequest("", chat, bool(special), names)

    def _check_text(self) -> None:
        """Raise `RequestError` for what only a conversation can have."""
        for name, asked in (
            ("tools", self.tools),
            ("chat_template_kwargs", self.chat_template_kwargs),
            ("continue_final_message", self.continue_final_message),
            ("add_generation_prompt", self.add_generation_prompt is False),
        ):
            if asked:
                raise RequestError(f"{name} goes with messages, not with prompt", param=name)


class DetokenizeBody(Struct, kw_only=True):
    """Body of `POST /detokenize`: token ids to turn back into text."""

    model: str = ""
    tokens: list[TokenId]


def score_list(scores: Sequence[Scores], *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of a score answer: one number a pair, in the order of the pairs."""
    values = [value for one in scores for value in one.scores]
    data = [
        {"index": index, "object": "score", "score": value} for index, value in enumerate(values)
    ]
    return _list_of(data, sum((one.usage for one in scores), Usage()), id, created, model)


def rerank_list(scores: Scores, body: RerankBody, *, id: str, model: str) -> dict[str, Any]:
    """Body of a rerank answer: at most `top_n` documents, the most relevant first."""
    texts = body.texts
    best = sorted(enumerate(scores.scores), key=lambda pair: (-pair[1], pair[0]))[
        : body.top_n or None
    ]
    results = [
        {
            "index": index,
            "relevance_score": score,
            **({"document": {"text": texts[index]}} if body.return_documents else {}),
        }
        for index, score in best
    ]
    return {"id": id, "model": model, "results": results, "usage": prompt_usage(scores.usage)}


def classes_of(results: Sequence[Decisions]) -> Classifications:
    """The classes that choices among labels found, one a text."""
    items = [
        Classification(
            one.labels[one.probabilities.index(max(one.probabilities))], one.probabilities
        )
        for result in results
        for one in result.items
    ]
    return Classifications(items, sum((result.usage for result in results), Usage()))


def class_list(classes: Classifications, *, id: str, created: int, model: str) -> dict[str, Any]:
    """Body of a classification answer: label and probabilities of each text, in order."""
    data = [
        {
            "index": index,
            "label": one.label,
            "probs": one.probabilities,
            "num_classes": len(one.probabilities),
        }
        for index, one in enumerate(classes.items)
    ]
    return _list_of(data, classes.usage, id, created, model)


def pooling_list(
    vectors: Sequence[Any],
    usage: Usage,
    *,
    id: str,
    created: int,
    model: str,
    base64: bool = False,
) -> dict[str, Any]:
    """Body of a pooling answer: of each text a vector, in the forms of embeddings, a list of them
    (in base64 one after the other, as in vLLM), or the `indices` and `values` of a sparse one.
    """
    data = [
        {"index": index, "object": "pooling", "data": _pooled(vector, base64)}
        for index, vector in enumerate(vectors)
    ]
    return _list_of(data, usage, id, created, model)


def _pooled(vector: Any, base64: bool) -> Any:
    if isinstance(vector, SparseVector):
        return msgspec.to_builtins(vector)
    if base64 and vector and isinstance(vector[0], list):
        vector = [number for one in vector for number in one]
    return encoded_vector(vector, base64)


def _list_of(
    data: list[dict[str, Any]], usage: Usage, id: str, created: int, model: str
) -> dict[str, Any]:
    return {
        "id": id,
        "object": "list",
        "created": created,
        "model": model,
        "data": data,
        "usage": prompt_usage(usage),
    }
