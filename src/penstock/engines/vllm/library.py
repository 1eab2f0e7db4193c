"""The border to vLLM: all names that come from it, and its errors as ours. Slow to import."""

from __future__ import annotations

from typing import Any

from penstock.engines.vllm.options import version_note
from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    OverloadedError,
    PenstockError,
    RequestError,
)

try:
    import httpx
    from vllm.distributed.kv_events import KVEventBatch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.chat_completion.protocol import (
        ChatCompletionRequest,
        ChatCompletionToolsParam,
    )
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.lora.request import LoRARequest
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.pooling_params import PoolingParams
    from vllm.reasoning import ReasoningParserManager
    from vllm.renderers import ChatParams
    from vllm.sampling_params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )
    from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin
    from vllm.tool_parsers import ToolParserManager
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.mistral import is_mistral_tokenizer
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError as CoreDead
except ImportError as error:
    raise EngineStartError(f"the installed vLLM cannot be used: {error}{version_note()}") from error

__all__ = [
    "MULTIMODAL_REGISTRY",
    "AsyncEngineArgs",
    "AsyncLLM",
    "ChatCompletionRequest",
    "ChatCompletionToolsParam",
    "ChatParams",
    "CoreDead",
    "FlexibleArgumentParser",
    "GracefulHTTPError",
    "KVEventBatch",
    "LoRARequest",
    "PoolingParams",
    "ReasoningParserManager",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "ThreadSafeHFTokenizerMixin",
    "ToolParserManager",
    "UsageContext",
    "VLLMClientError",
    "build_app",
    "httpx",
    "init_app_state",
    "is_mistral_tokenizer",
    "make_arg_parser",
]

_TOO_LONG = frozenset({"input_tokens", "input_text", "max_tokens", "max_completion_tokens"})


def as_penstock_error(error: Exception, why_dead: str, *, preparing: bool = False) -> PenstockError:
    """Maps an error of vLLM's. While `preparing`, a `ValueError` is the request's fault."""
    if isinstance(error, PenstockError):
        return error
    if isinstance(error, CoreDead):
        return EngineDeadError(why_dead)
    if isinstance(error, GracefulHTTPError):
        return OverloadedError(f"vLLM takes no more requests: {one_line(error)}")
    if isinstance(error, VLLMClientError) or (
        preparing and isinstance(error, (ValueError, TypeError, KeyError))
    ):
        parameter = getattr(error, "parameter", None)
        if parameter in _TOO_LONG and "context" in str(error):
            return ContextLengthError(f"prompt is too long: {one_line(error)}")
        return RequestError(
            f"vLLM refuses the request: {one_line(error)}",
            param=parameter if isinstance(parameter, str) else None,
        )
    cause = error.__cause__
    if isinstance(cause, Exception):
        return as_penstock_error(cause, why_dead, preparing=preparing)
    return EngineError(f"vLLM failed: {type(error).__name__}: {one_line(error)}".rstrip(": "))


def one_line(error: BaseException) -> str:
    """The text of an error on one line, of at most 600 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 600 else f"{text[:600]} …"


def special_tokens(tokenizer: Any) -> dict[str, str]:
    """Special tokens by the names that templates use."""
    names = getattr(tokenizer, "special_tokens_map", {})
    return {name: text for name, text in names.items() if isinstance(text, str)}
