"""Requests and responses as pydantic models, with the names of `ray.serve.llm`.

They are open: a field that Penstock does not know travels as it is, and the form of the HTTP API
checks what it says. So `ChatCompletionRequest(...)` takes whatever `/v1/chat/completions` takes.
"""

from __future__ import annotations

import time
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from penstock.errors import PenstockError
from penstock.openai.audio import TranscriptionBody
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import DetokenizeBody, ScoreBody, TokenizeBody
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses import error_body

if TYPE_CHECKING:
    from penstock.llm_config import LLMConfig


class Open(BaseModel):
    """A model that keeps fields it does not declare."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())
    if TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None: ...


def _new_id() -> str:
    return uuid.uuid4().hex


_VLLMS: dict[str, Any] = {
    **{"n": 1, "min_tokens": 0, "priority": 0, "top_logprobs": 0},
    **{"ignore_eos": False, "echo": False, "continue_final_message": False},
    **{"return_token_strs": False, "add_generation_prompt": True, "parallel_tool_calls": True},
    **{"stop": [], "stop_token_ids": [], "bad_words": []},
    **{"frequency_penalty": 0.0, "presence_penalty": 0.0},
}
"""What unset fields of vLLM's requests are, where that is not None."""
_OF_FORM: dict[tuple[type[msgspec.Struct], str], Any] = {
    (ChatBody, "logprobs"): False,
    (CompletionBody, "max_tokens"): 16,
}


@cache
def _defaults(cls: type[Request]) -> dict[str, Any]:
    found = {one.name: one.default for one in msgspec.structs.fields(cls.form)}
    return cls.others | {
        name: _OF_FORM.get((cls.form, name), _VLLMS.get(name))
        if value in (None, msgspec.NODEFAULT)
        else value
        for name, value in found.items()
    }


class Request(Open):
    """A request; fields of `form` that it does not have read as their defaults, those of vLLM, and
    so do `others`, which vLLM has and the HTTP API lacks. A list is the request's own from then on,
    so that it can be added to.
    """

    form: ClassVar[type[msgspec.Struct]]
    others: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("session_id", "stream_interval", "prompt_embeds")),
        **dict.fromkeys(("return_token_offsets", "return_assistant_tokens_mask"), False),
    }
    model: str | None = None
    request_id: str = Field(default_factory=_new_id)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    else:

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                defaults = _defaults(type(self))
                if name not in defaults:
                    raise
                if isinstance(defaults[name], list):
                    setattr(self, name, [])
                    return getattr(self, name)
                return defaults[name]


class ChatCompletionRequest(Request):
    form = ChatBody
    messages: list[dict[str, Any]]
    stream: bool | None = False


class CompletionRequest(Request):
    form = CompletionBody
    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    stream: bool | None = False


class EmbeddingCompletionRequest(Request):
    form = EmbeddingBody
    input: str | list[str] | list[int] | list[list[int]]


class EmbeddingChatRequest(Request):
    """Embeddings of a conversation, for a model that sees."""

    form = EmbeddingBody
    messages: list[dict[str, Any]]


EmbeddingRequest = EmbeddingCompletionRequest | EmbeddingChatRequest


class ScoreRequest(Request):
    form = ScoreBody
    text_1: str | list[str]
    text_2: str | list[str]


class TokenizeCompletionRequest(Request):
    form = TokenizeBody
    prompt: str


class TokenizeChatRequest(Request):
    form = TokenizeBody
    messages: list[dict[str, Any]]


TokenizeRequest = TokenizeCompletionRequest | TokenizeChatRequest


class DetokenizeRequest(Request):
    form = DetokenizeBody
    tokens: list[int]


class TranscriptionRequest(Request):
    """`file` is the sound: bytes, a file, or an upload of Starlette's."""

    form = TranscriptionBody
    others: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("seed", "top_p", "top_k", "min_p", "repetition_penalty", "vllm_xargs")),
        **{"frequency_penalty": 0.0, "presence_penalty": 0.0, "length_penalty": 1.0, "n": 1},
        **{"use_beam_search": False, "include_stop_str_in_output": False},
        **{"stream_include_usage": False, "stream_continuous_usage_stats": False},
    }
    file: Any
    language: str | None = None
    prompt: str = ""
    response_format: str = "json"
    temperature: float = 0.0
    stream: bool | None = False
    timestamp_granularities: list[str] = []
    max_tokens: int | None = None


# Responses: the fields of vLLM's, so that each can be read, and is shown, whether it is set or not
class PromptTokensDetails(Open):
    cached_tokens: int | None = None


class UsageInfo(Open):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: Any = None


class FunctionCall(Open):
    name: str | None = None
    arguments: str | None = None


class ToolCall(Open):
    id: str | None = None
    type: str | None = "function"
    function: FunctionCall = Field(default_factory=FunctionCall)


class DeltaMessage(Open):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)


class ChatMessage(DeltaMessage):
    role: str | None = "assistant"
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None


class Choice(Open):
    index: int = 0
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionResponseChoice(Choice):
    message: ChatMessage
    finish_reason: str | None = "stop"


class ChatCompletionStreamChoice(Choice):
    delta: DeltaMessage


class CompletionChoice(Choice):
    text: str = ""
    prompt_logprobs: Any = None
    prompt_token_ids: list[int] | None = None


def _id(prefix: str) -> Any:
    return Field(default_factory=lambda: f"{prefix}-{_new_id()}")


class Response(Open):
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str | None = None
    usage: UsageInfo | None = None


class GeneratedResponse(Response):
    service_tier: str | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    kv_transfer_params: dict[str, Any] | None = None
    metrics: Any = None


class ChatCompletionResponse(GeneratedResponse):
    id: str = _id("chatcmpl")
    object: str = "chat.completion"
    choices: list[ChatCompletionResponseChoice]
    prompt_logprobs: Any = None


class ChatCompletionStreamResponse(GeneratedResponse):
    id: str = _id("chatcmpl")
    object: str = "chat.completion.chunk"
    choices: list[ChatCompletionStreamChoice]


class CompletionResponse(GeneratedResponse):
    id: str = _id("cmpl")
    object: str = "text_completion"
    choices: list[CompletionChoice]


class CompletionStreamResponse(GeneratedResponse):
    id: str = _id("cmpl")
    object: str = "text_completion"
    choices: list[CompletionChoice]


class EmbeddingData(Open):
    index: int = 0
    object: str = "embedding"
    embedding: list[float] | str


class EmbeddingResponse(Response):
    id: str = _id("embd")
    object: str = "list"
    data: list[EmbeddingData]


class ScoreData(Open):
    index: int = 0
    object: str = "score"
    score: float


class ScoreResponse(Response):
    id: str = _id("score")
    object: str = "list"
    data: list[ScoreData]


class TokenizeResponse(Open):
    count: int
    max_model_len: int | None = None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(Open):
    prompt: str


class TranscriptionResponse(Open):
    text: str
    usage: Any = None


class TranscriptionStreamResponse(Open):
    """Never made: the events of a stream come as text."""


class ErrorInfo(Open):
    message: str
    type: str = ""
    param: str | None = None
    code: int = 500


class ErrorResponse(Open):
    """`error.code` is the HTTP status."""

    error: ErrorInfo


def error_answer(error: PenstockError) -> ErrorResponse:
    """An error as the response that Ray's servers give."""
    return ErrorResponse(
        error=ErrorInfo.model_validate({**error_body(error)["error"], "code": error.status})
    )


class OpenAIHTTPException(Exception):
    """An error with an HTTP status; raised in a method of an ingress, it is the answer."""

    def __init__(
        self,
        status_code: int,
        message: str,
        type: str = "Unknown",
        internal_message: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message
        self.type = type
        self.internal_message = internal_message


# Models
class ModelCard(Open):
    """What `/v1/models` says of a model."""

    id: str
    object: str = "model"
    owned_by: str = "penstock"
    permission: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)


class ModelList(Open):
    data: list[ModelCard]
    object: str = "list"


def to_model_metadata(
    model_id: str, model_config: LLMConfig, overrides: dict[str, Any] | None = None
) -> ModelCard:
    """The card of a configured model. An ingress finds the configuration in it again."""
    length = model_config.engine_kwargs.get("max_model_len")
    metadata = {
        "model_id": model_config.model_id,
        "input_modality": "text",
        "max_request_context_length": length if isinstance(length, int) else None,
        **(overrides or {}),
    }
    card = ConfiguredCard(id=model_id, metadata=metadata)
    card._llm_config = model_config
    return card


class ConfiguredCard(ModelCard):
    """A card that knows its model's configuration, which is not part of what it shows."""

    _llm_config: Any = None

    @property
    def llm_config(self) -> Any:
        return self._llm_config


RESPONSES: dict[str, type[Open]] = {
    "chat": ChatCompletionResponse,
    "completions": CompletionResponse,
    "embeddings": EmbeddingResponse,
    "score": ScoreResponse,
    "tokenize": TokenizeResponse,
    "detokenize": DetokenizeResponse,
    "transcriptions": TranscriptionResponse,
}
"""Method → the model of its whole answer."""
REQUESTS: dict[str, type[Open]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingCompletionRequest,
    "score": ScoreRequest,
    "tokenize": TokenizeCompletionRequest,
    "detokenize": DetokenizeRequest,
    "transcriptions": TranscriptionRequest,
}
"""Method → the model of its request."""
OF_CHATS: dict[str, type[Open]] = {
    "embeddings": EmbeddingChatRequest,
    "tokenize": TokenizeChatRequest,
}
"""The same of a request with a conversation, where that is another one."""
