"""Everything that is taken from vLLM, and what differs between its versions. Importing this takes
seconds.
"""

from __future__ import annotations

from penstock.engines.vllm.options import version_note
from penstock.errors import EngineStartError

try:
    from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import GracefulHTTPError, VLLMClientError
    from vllm.lora.request import LoRARequest
    from vllm.pooling_params import PoolingParams
    from vllm.reasoning import ReasoningParserManager
    from vllm.renderers import ChatParams
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
    from vllm.tokenizers.hf import ThreadSafeHFTokenizerMixin
    from vllm.tool_parsers import ToolParserManager
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.mistral import is_mistral_tokenizer
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
except ImportError as error:
    raise EngineStartError(f"the installed vLLM cannot be used: {error}{version_note()}") from error

__all__ = [
    "AllBlocksCleared",
    "AsyncEngineArgs",
    "AsyncLLM",
    "BlockRemoved",
    "BlockStored",
    "ChatCompletionRequest",
    "ChatParams",
    "EngineDeadError",
    "EngineGenerateError",
    "FlexibleArgumentParser",
    "GracefulHTTPError",
    "KVEventBatch",
    "LoRARequest",
    "PoolingParams",
    "ReasoningParserManager",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "ThreadSafeHFTokenizerMixin",
    "ToolParserManager",
    "UsageContext",
    "VLLMClientError",
    "build_app",
    "init_app_state",
    "is_mistral_tokenizer",
    "make_arg_parser",
]
