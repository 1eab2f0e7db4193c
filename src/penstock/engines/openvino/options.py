"""`engine_kwargs` of the OpenVINO engine, and the messages that carry them to its processes.
Imports nothing of OpenVINO.

Where vLLM has the same knob, it has vLLM's name. Two options let the attention of a long text leave
tokens out. `CacheEviction` forgets tokens of the KV cache: it keeps what the attention looked at
most, as in [H2O](https://arxiv.org/abs/2306.14048), the prompt weighed as in
[SnapKV](https://arxiv.org/abs/2404.14469). `SparseAttention` reads less of the cache, in GenAI's
two modes: `trishape` ([TriShape](https://arxiv.org/abs/2412.10319)) and `xattention`
([XAttention](https://arxiv.org/abs/2503.16428)).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field, msgpack

from penstock.config import Count, Positive, Seconds
from penstock.engines.base import not_deterministic
from penstock.engines.openvino.model.weights import Quantization, WeightFormat, check_weights
from penstock.engines.process import Abort, Call, Failed, Submit
from penstock.errors import ConfigError, EngineError, PenstockError, UnsupportedError
from penstock.kv.prefix_index import BLOCK_SIZE
from penstock.llm_config.batch import BatchConfig
from penstock.openai.parsers.table import check_names

Tokens = Annotated[int, Meta(ge=1)]


class CacheEviction(Struct, frozen=True, forbid_unknown_fields=True):
    """Each request keeps at most `max_cache_size` tokens of its KV cache while it generates: the
    first `start_size`, the last `recent_size`, and between them those with the highest scores. All
    are multiples of 32. `aggregation_mode`: whether a token's scores are summed, or divided by its
    age too. `snapkv_window_size`: how many tokens at the end of the prompt score the others.
    """

    start_size: Tokens = 32
    recent_size: Tokens = 128
    max_cache_size: Tokens = 672
    aggregation_mode: Literal["norm_sum", "sum"] = "norm_sum"
    snapkv_window_size: Count = 8

    def __post_init__(self) -> None:
        where = "engine_kwargs.cache_eviction"
        for name in ("start_size", "recent_size", "max_cache_size"):
            _check_blocks(getattr(self, name), f"{where}.{name}")
        least = self.start_size + self.recent_size
        if self.max_cache_size <= least:
            raise ConfigError(
                f"{self.max_cache_size} is not above start_size + recent_size, which is {least}",
                field=f"{where}.max_cache_size",
                value=self.max_cache_size,
            )

    def check_prompt(self, tokens: int) -> None:
        """Raise `UnsupportedError` for a prompt of a length at which GenAI 2026.4.1 fails."""
        first, end = self.start_size + 1, self.start_size + self.snapkv_window_size
        if first <= tokens < end:
            raise UnsupportedError(
                f"prompts of {first} to {end - 1} tokens do not go with this cache_eviction, and"
                f" this one has {tokens}: start the engine with snapkv_window_size 1",
                param="prompt",
            )


class SparseAttention(Struct, frozen=True, forbid_unknown_fields=True):
    """While a prompt is computed, its tokens attend to a part of those before them, all but the
    last `num_last_dense_tokens_in_prefill`. With `trishape`, to the first
    `num_retained_start_tokens_in_cache` and to the last `num_retained_recent_tokens_in_cache`
    (multiples of 32). With `xattention`, to blocks of `xattention_block_size` tokens whose
    estimated shares reach `xattention_threshold` together; the estimate looks at each
    `xattention_stride`-th token.
    """

    mode: Literal["trishape", "xattention"] = "trishape"
    num_last_dense_tokens_in_prefill: Count = 100
    num_retained_start_tokens_in_cache: Count | None = None
    num_retained_recent_tokens_in_cache: Count | None = None
    xattention_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    xattention_block_size: Literal[32, 64, 128, 256] | None = None
    xattention_stride: Literal[1, 2, 4, 8, 16] | None = None

    def __post_init__(self) -> None:
        where = "engine_kwargs.sparse_attention"
        other = "xattention" if self.mode == "trishape" else "num_retained"
        for name in self.__struct_fields__:
            if name.startswith(other) and getattr(self, name) is not None:
                raise ConfigError(
                    f"is for the other mode, not for {self.mode}", field=f"{where}.{name}"
                )
            if name.startswith("num_retained"):
                _check_blocks(getattr(self, name) or 0, f"{where}.{name}")


def _check_blocks(tokens: int, field: str) -> None:
    if tokens % BLOCK_SIZE:
        raise ConfigError(
            f"{tokens} is not a multiple of {BLOCK_SIZE}, the size of a block of the cache",
            field=field,
            value=tokens,
        )


GIB = 1 << 30


class OpenVINOOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the embedded engine.

    `task` None: what the model's files say. `tokenizer`: a directory with another tokenizer than
    the model's own, in OpenVINO's form, for models that generate. `max_num_seqs`: requests decoded
    together. `max_num_batched_tokens`: tokens a step may work on; small keeps the steps short, so a
    long prompt does not stall the others. `max_model_len` None: the model's own context.
    `kv_cache_memory_bytes`: memory of the KV cache, used as it fills; a size that is not a whole
    number of GiB costs a second load at the start. `num_threads` 0: all cores that it has.
    `inference_precision` None: the device's choice, f32 where only one CPU is visible (bf16 crashes
    there on AMX machines). `max_loras`: adapters held at once, each with a copy of the model's
    weights; the least recently used leaves. `embedding_pooling` None: what the model's
    `1_Pooling/config.json` says, else the mean. `query_instruction` and `document_instruction`: the
    text before each text whose `input_type` is that; None: what the model's
    `config_sentence_transformers.json` says. `weight_format`: the precision of a converted model;
    None and "auto": int8 from a billion parameters on, else fp16, of embedding and rerank models
    fp32. `conversion`: further options of the conversion. `prompt_lookup`: speculate with n-grams
    of the prompt, of `prompt_lookup_max` (3) tokens at most. `draft_model`: directory of a smaller
    model that speculates, on `draft_device` (None: `device`). `num_speculative_tokens` (5): how
    far either looks ahead. `assistant_confidence_threshold`: the draft model looks ahead as long
    as its tokens are at least so likely, instead. `cache_eviction` and `sparse_attention`: what a
    long text's attention leaves out. `deterministic`: answers do not depend on what else runs, on
    the cache or on restarts. `properties`: further OpenVINO properties. `tool_call_parser` and
    `reasoning_parser` None: what the chat template's marks say. `chat_template`: a file with a
    template in place of the model's own, or its text. `default_chat_template_kwargs`: names for
    the template that requests may override.

    Of vision-language models: a request may have `max_images` images and videos, of
    `max_image_bytes` (files) and `max_image_pixels` together. Of a video the model sees
    `video_frames` frames, evenly spread; all frames of a request's videos may have
    `max_video_pixels`. `image_urls`: images and videos are also loaded from http and https, within
    `image_timeout_s` seconds; else they come with their request.

    Of speech models: a recording may have `max_audio_bytes` (its file) and last
    `max_audio_seconds`. `word_timestamps`: requests may ask for the times of words, which makes the
    model slower. `voices`: names of voices, each with a file of its numbers (32-bit floats).
    """

    task: Literal["generate", "embed", "score", "transcribe", "speak"] | None = None
    device: str = "CPU"
    tokenizer: str | None = None
    max_num_seqs: Positive = 128
    max_num_batched_tokens: Annotated[int, Meta(ge=32)] = 512
    max_model_len: Positive | None = None
    kv_cache_memory_bytes: Annotated[int, Meta(ge=1 << 20)] = GIB
    kv_cache_precision: Literal["f32", "f16", "bf16", "u8", "u4"] | None = None
    enable_prefix_caching: bool = True
    num_threads: Count = 0
    inference_precision: Literal["f32", "f16", "bf16"] | None = None
    max_loras: Positive = 4
    prompt_lookup: bool = False
    prompt_lookup_max: Positive | None = None
    draft_model: str | None = None
    draft_device: str | None = None
    num_speculative_tokens: Positive | None = None
    assistant_confidence_threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None
    cache_eviction: CacheEviction | None = None
    sparse_attention: SparseAttention | None = None
    embedding_pooling: Literal["mean", "cls", "last_token"] | None = None
    embedding_normalize: bool = True
    weight_format: WeightFormat | None = None
    conversion: Quantization = Quantization()
    query_instruction: str | None = None
    document_instruction: str | None = None
    deterministic: bool = False
    properties: dict[str, Any] = field(default_factory=dict)
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    default_chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_images: Positive = 16
    max_image_bytes: Positive = 64 << 20
    max_image_pixels: Positive = 1 << 26
    max_video_pixels: Positive = 1 << 34
    video_frames: Positive = 8
    image_urls: bool = False
    image_timeout_s: Seconds = 30.0
    max_audio_bytes: Positive = 64 << 20
    max_audio_seconds: Seconds = 7200.0
    word_timestamps: bool = False
    voices: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weights(self.weight_format, self.conversion)
        check_names(self.tool_call_parser, self.reasoning_parser)
        if self.prompt_lookup and self.draft_model:
            raise ConfigError(
                "give prompt_lookup or draft_model, not both", field="engine_kwargs.draft_model"
            )
        self._check_speculation()
        if self.cache_eviction is not None and self.enable_prefix_caching:
            raise ConfigError(
                "a prefix whose tokens were evicted gives wrong answers; set"
                " enable_prefix_caching to false",
                field="engine_kwargs.cache_eviction",
            )
        if self.deterministic:
            self._check_deterministic()

    def device_properties(self) -> dict[str, Any]:
        """The options for threads and precision as OpenVINO's properties."""
        properties = {
            "INFERENCE_NUM_THREADS": self.num_threads or None,
            "INFERENCE_PRECISION_HINT": self.inference_precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0" if self.deterministic else None,
        }
        return {name: value for name, value in properties.items() if value is not None}

    def _check_speculation(self) -> None:
        """Refuse what the chosen way of speculating, or the lack of one, has no use for."""
        if self.prompt_lookup_max is not None and not self.prompt_lookup:
            raise ConfigError("needs prompt_lookup", field="engine_kwargs.prompt_lookup_max")
        if self.num_speculative_tokens and not (self.prompt_lookup or self.draft_model):
            raise ConfigError(
                "needs prompt_lookup or a draft_model", field="engine_kwargs.num_speculative_tokens"
            )
        if self.draft_model is None:
            for name in ("draft_device", "assistant_confidence_threshold"):
                if getattr(self, name) is not None:
                    raise ConfigError("needs a draft_model", field=f"engine_kwargs.{name}")
        if self.cache_eviction is not None and (self.prompt_lookup or self.draft_model):
            raise ConfigError(
                "does not go with speculation: give no prompt_lookup and no draft_model",
                field="engine_kwargs.cache_eviction",
            )
        if self.assistant_confidence_threshold and self.num_speculative_tokens:
            raise ConfigError(
                "give assistant_confidence_threshold or num_speculative_tokens, not both",
                field="engine_kwargs.assistant_confidence_threshold",
            )

    def _check_deterministic(self) -> None:
        """Refuse an option or a property that contradicts `deterministic`."""
        needed: dict[str, Any] = {**DETERMINISTIC_OPTIONS, **_WITHOUT}
        for name, value in needed.items():
            if getattr(self, name) not in (None, value):
                raise not_deterministic(name, getattr(self, name))
        for name, value in self.properties.items():
            wanted = DETERMINISTIC_PROPERTIES.get(name.upper())
            if wanted is not None and str(value).lower() != wanted:
                raise not_deterministic(f"properties.{name}", value)


def check_search_options(options: OpenVINOOptions) -> None:
    """Raise `UnsupportedError` for a beam search where an option leaves no room for one."""
    for name in ("prompt_lookup", "draft_model", "cache_eviction"):
        if getattr(options, name):
            raise UnsupportedError(
                f"use_beam_search does not go with {name}, with which this engine was started",
                param="use_beam_search",
            )


DETERMINISTIC_OPTIONS: Mapping[str, Any] = {
    "inference_precision": "f32",
    "kv_cache_precision": "f32",
}
"""With f32, another order of sums changes far less than what separates two tokens."""
_WITHOUT: Mapping[str, Any] = {
    "device": "CPU",
    "prompt_lookup": False,
    "draft_model": None,
    "cache_eviction": None,
    "sparse_attention": None,
}
DETERMINISTIC_PROPERTIES: Mapping[str, str] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "KEY_CACHE_PRECISION": "f32",
    "VALUE_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}

COSTS_ONLY = frozenset(
    {
        *("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes"),
        *("enable_prefix_caching", "num_threads"),
        *("max_loras", "image_timeout_s"),
    }
)
COSTS_ONLY_PROPERTIES = frozenset(
    {
        *("NUM_STREAMS", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT"),
        *("PERFORMANCE_HINT_NUM_REQUESTS", "LOG_LEVEL"),
        *("ENABLE_CPU_PINNING", "ENABLE_CPU_RESERVATION"),
        *("ENABLE_HYPER_THREADING", "SCHEDULING_CORE_TYPE"),
        *("MODEL_DISTRIBUTION_POLICY", "CACHE_DIR", "CACHE_MODE", "PERF_COUNT", "TBB_PARTITIONER"),
        *("ENABLE_TENSOR_PARALLEL", "ENABLE_MMAP", "ENABLE_SAVE_OV_MODEL"),
        *("ENABLE_WEIGHTLESS", "WEIGHTS_PATH"),
        "COMPILATION_NUM_THREADS",
    }
)


class Load(Struct, tag="load", array_like=True):
    """First message: the IR directory or GGUF file to load. `context_length` is in tokens."""

    path: str
    task: str
    context_length: int
    options: OpenVINOOptions
    sharing: BatchConfig = field(default_factory=BatchConfig)


class LoadTokenizer(Struct, tag="load_tokenizer", array_like=True):
    """First message to a process that tries constraints: the directory or GGUF file of the
    tokenizer, and for each constraint the seconds of processor time and the bytes of memory it may
    take.
    """

    path: str
    seconds: float
    memory_bytes: int


ToWorker = Load | Submit | Abort | Call

decode_to_worker = msgpack.Decoder(ToWorker).decode
decode_to_constraint_worker = msgpack.Decoder(LoadTokenizer | Call).decode


_PLACE = re.compile(r"^(\[\d\d:\d\d:\d\d\] )?\S+\.(cc|cpp|hpp|h):\d+: ")


def reason_of(error: BaseException) -> str:
    """The reason of an exception of OpenVINO: the last of its lines, without the place in C++."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):  # of its text, which was cut within a character
        text = error.object.decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _PLACE.sub("", lines[-1]) if lines else type(error).__name__


def failure_of(number: int, error: Exception) -> Failed:
    """The message about an error: ours as it is, another one as the engine's."""
    if not isinstance(error, PenstockError):
        error = EngineError(reason_of(error))
    return Failed.of(number, error)
