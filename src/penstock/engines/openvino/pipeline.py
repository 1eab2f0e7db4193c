"""Builds OpenVINO GenAI's objects: pipelines with or without an adapter, tokenizers, settings."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from msgspec.structs import asdict

from penstock.cores import usable_cores
from penstock.engines.beams import Beams
from penstock.engines.openvino.model.draft import needs_whole_prompts
from penstock.engines.openvino.model.files import LANGUAGE_MODEL, sees
from penstock.engines.openvino.model.gguf import read_header
from penstock.engines.openvino.model.gguf_ir import keeping
from penstock.engines.openvino.model.vision_files import as_trained
from penstock.engines.openvino.options import GIB, OpenVINOOptions
from penstock.engines.sampling import check_id_range
from penstock.errors import ContextLengthError, EngineStartError, UnsupportedError
from penstock.types import Sampling, Tokens

_MOST_COMPANIONS = 16
_LOOKAHEAD, _NGRAM = 5, 3
_COMPANION_TOKENS = 24
"""The tokens of a companion's answer. With its prompt it stays within one block of the cache."""
RUNNING = genai.GenerationStatus.RUNNING
_BATCHED_CHARS = 16384
"""Texts with more characters than this are encoded one by one."""
AS_IS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that changes nothing. Without a template, the pipeline adds special tokens to
each text, even if the model's own template has written them already.
"""
_GGUF_TOKENIZER_LIMIT = 8192
"""GenAI's tokenizer for GGUF files cuts longer texts in silence."""
_STOP_CRITERIA = {
    False: genai.StopCriteria.HEURISTIC,
    True: genai.StopCriteria.EARLY,
    "never": genai.StopCriteria.NEVER,
}
_LARGEST_MIN_P = 1.0 - 2.0**-24
"""The number below 1. GenAI refuses 1; both leave only the most likely token."""


class Pipelines:
    """Makes pipelines of one model and its options, each with `cache_blocks` blocks of KV cache."""

    def __init__(self, path: str, options: OpenVINOOptions) -> None:
        self._path = path
        self._options = options
        self._exact_blocks = 0
        properties = {name.lower(): value for name, value in options.properties.items()}
        self._keeps = path.endswith(".gguf") and properties.get("enable_save_ov_model") is not False
        if path.endswith(".gguf") and not self._keeps and read_header(Path(path)).needs_mending:
            raise EngineStartError(
                f"'{path}' is read rightly from its graph on disk alone: leave"
                " properties.enable_save_ov_model out"
            )
        self._companions = sequences_wanted(options.deterministic, options.num_threads)
        self._whole_prompts = needs_whole_prompts(options)
        self.cache_blocks = 0
        self.sees = sees(Path(path))
        """Whether this is a vision-language model, whose pipeline takes text and no token ids."""
        self.chat_template: str | None = None

    def first(self) -> Any:
        """The model's first pipeline, which settles `cache_blocks`.

        GenAI takes whole GiB or a number of blocks, and does not say how large a block is. So for
        another size the pipeline is loaded with whole GiB first (which are only reserved), its
        blocks are measured, and it is loaded again.
        """
        size = self._options.kv_cache_memory_bytes
        pipeline = self._load()
        self.cache_blocks, measured = _measure_cache(pipeline, self._options, self.sees)
        if size % GIB:
            self._exact_blocks = self.cache_blocks = max(size * self.cache_blocks // measured, 1)
            del pipeline
            pipeline = self._load()
        return pipeline

    def logits(self) -> int | None:
        """The size of the model's logits, often above the vocabulary's; None if unknown."""
        file = Path(self._path) / (LANGUAGE_MODEL if self.sees else "openvino_model.xml")
        if not file.is_file():
            return None
        size = ov.Core().read_model(file).output("logits").get_partial_shape()[-1]
        return int(size.get_length()) if size.is_static else None

    def tokenizer(self, pipeline: Any) -> Tokenizer:
        """The tokenizer of a pipeline of the model."""
        found = pipeline.get_tokenizer()
        if not self._path.endswith(".gguf") or self._options.tokenizer is not None:
            return Tokenizer(found)
        return Tokenizer(found, _GGUF_TOKENIZER_LIMIT, read_header(Path(self._path)).begins_with)

    def base(self) -> Any:
        """A further pipeline of the model without an adapter."""
        return self._load()

    def with_adapter(self, path: str) -> Any:
        """The model with a LoRA adapter (PEFT files in directory `path`) merged in."""
        if self.sees:
            raise UnsupportedError(
                "the openvino engine has no LoRA adapters for vision-language models"
            )
        if self._path.endswith(".gguf"):
            raise UnsupportedError(
                "the openvino engine has no LoRA adapters for GGUF models; use an IR directory"
            )
        directory = Path(path)
        settings = json.loads((directory / "adapter_config.json").read_text())
        rank, alpha = settings["r"], settings.get("lora_alpha", settings["r"])
        # GenAI does not read alpha from the adapter's configuration.
        scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
        adapter = genai.Adapter(str(directory / "adapter_model.safetensors"))
        return self._load(
            genai.AdapterConfig(adapter, scale, mode=genai.AdapterConfig.Mode.MODE_STATIC)
        )

    def _load(self, adapters: Any = None) -> Any:
        options = self._options
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = options.max_num_seqs + self._companions
        scheduler.max_num_batched_tokens = (
            max(options.max_num_batched_tokens, options.max_num_seqs) + self._companions
        )
        scheduler.enable_prefix_caching = options.enable_prefix_caching
        scheduler.dynamic_split_fuse = not self._whole_prompts
        _leave_out(scheduler, options)
        if self._exact_blocks:
            scheduler.num_kv_blocks = self._exact_blocks + self._companions
        else:
            scheduler.cache_size = max(options.kv_cache_memory_bytes // GIB, 1)
        given = {
            "KV_CACHE_PRECISION": options.kv_cache_precision,
            "prompt_lookup": options.prompt_lookup or None,
            "adapters": adapters,
        }
        properties = {name: value for name, value in given.items() if value is not None}
        if options.draft_model:
            # The pipeline owns the draft model: nothing else may hold a reference to it.
            properties["draft_model"] = genai.draft_model(
                str(Path(options.draft_model).expanduser()), options.draft_device or options.device
            )
        properties = options.device_properties() | properties | options.properties
        if options.tokenizer is not None:
            tokenizer = genai.Tokenizer(str(Path(options.tokenizer).expanduser()))
            return genai.ContinuousBatchingPipeline(
                self._path, tokenizer, scheduler, options.device, **properties
            )
        with self._source() as (path, saving):
            pipeline = genai.ContinuousBatchingPipeline(
                path, scheduler, options.device, {**properties, **saving}, saving
            )
        if self.sees:
            tokenizer = pipeline.get_tokenizer()
            self.chat_template = self.chat_template or own_template(tokenizer)
            tokenizer.set_chat_template(AS_IS)
        return pipeline

    def _source(self) -> AbstractContextManager[tuple[str, dict[str, Any]]]:
        """The path from which GenAI reads the model, and the properties for that."""
        if self._keeps:
            return keeping(self._path)
        return as_trained(self._path) if self.sees else nullcontext((self._path, {}))


def generation_config(
    sampling: Sampling,
    max_new_tokens: int,
    eos: int,
    stop_ids: set[int],
    options: OpenVINOOptions,
    beams: Beams | None = None,
) -> Any:
    """GenAI's settings for one request. `stop_ids` are the model's own end tokens."""
    samples = sampling.temperature > 0 and beams is None
    config = genai.GenerationConfig(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(sampling.min_tokens, max_new_tokens),
        # The answer ends where its constraint ends: further text would not be constrained.
        ignore_eos=sampling.ignore_eos
        and (sampling.structured is None or bool(sampling.structured.triggers)),
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logprobs=0 if sampling.logprobs is None else 1,
        apply_chat_template=False,
        do_sample=samples,
    )
    ends = set(sampling.stop_token_ids)
    if not config.ignore_eos:
        ends |= stop_ids
    elif ends:
        # With `ignore_eos` GenAI ignores all stop ids, so one of them becomes the end of sequence.
        config.ignore_eos = False
        eos = min(ends)
    if eos >= 0:
        config.set_eos_token_id(eos)
    config.stop_token_ids = ends
    if samples:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = min(sampling.min_p, _LARGEST_MIN_P)
        if sampling.top_k > 0:
            config.top_k = sampling.top_k
        config.rng_seed = random.getrandbits(31) if sampling.seed is None else sampling.seed % 2**31
    if sampling.structured is not None:
        config.structured_output_config = genai.StructuredOutputConfig(
            grammar=sampling.structured.spec
        )
    if beams is not None:
        config.num_beams, config.num_return_sequences = beams.width, beams.answers
        config.num_beam_groups = beams.groups
        config.diversity_penalty = beams.diversity_penalty
        config.length_penalty = beams.length_penalty
        config.stop_criteria = _STOP_CRITERIA[beams.early_stopping]
    _speculate(config, options)
    return config


def _leave_out(scheduler: Any, options: OpenVINOOptions) -> None:
    """Set which tokens attention leaves out."""
    if options.cache_eviction is not None:
        given = asdict(options.cache_eviction)
        mode = getattr(genai.AggregationMode, given.pop("aggregation_mode").upper())
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(**given, aggregation_mode=mode)
    if options.sparse_attention is not None:
        given = {k: v for k, v in asdict(options.sparse_attention).items() if v is not None}
        mode = getattr(genai.SparseAttentionMode, given.pop("mode").upper())
        scheduler.use_sparse_attention = True
        scheduler.sparse_attention_config = genai.SparseAttentionConfig(**given, mode=mode)


def _speculate(config: Any, options: OpenVINOOptions) -> None:
    """Set how far a pipeline speculates, which every request must say."""
    if options.assistant_confidence_threshold:
        config.assistant_confidence_threshold = options.assistant_confidence_threshold
    elif options.prompt_lookup or options.draft_model:
        config.num_assistant_tokens = options.num_speculative_tokens or _LOOKAHEAD
    if options.prompt_lookup:
        config.max_ngram_size = options.prompt_lookup_max or _NGRAM


def shortest_prompt(sees: bool) -> Any:
    """A prompt that an EAGLE-3 head takes too: a text for a vision model, else token ids."""
    return "a" if sees else ov.Tensor(np.zeros((1, 2), dtype=np.int64))


def own_template(tokenizer: Any) -> str | None:
    """The model's own chat template, before GenAI simplified it."""
    return tokenizer.get_original_chat_template() or tokenizer.chat_template or None


def _measure_cache(pipeline: Any, options: OpenVINOOptions, sees: bool) -> tuple[int, int]:
    """Blocks and bytes of a pipeline's KV cache, from a run that fills exactly one block."""
    config = genai.GenerationConfig(max_new_tokens=3, ignore_eos=True, apply_chat_template=False)
    _speculate(config, options)
    handle = pipeline.add_request(0, shortest_prompt(sees), config)
    usage = 0.0
    # The handle is kept: GenAI drops a request without one.
    while handle.get_status() == RUNNING:
        pipeline.step()
        usage = max(usage, pipeline.get_metrics().cache_usage)
    return round(100 / usage), pipeline.get_metrics().kv_cache_size_in_bytes


def sequences_wanted(deterministic: bool, num_threads: int) -> int:
    """How many sequences a step needs at least to be deterministic; 0 if it need not be.

    `num_threads` 0: all cores.
    """
    if not deterministic:
        return 0
    return max(min(num_threads or len(usable_cores()), _MOST_COMPANIONS), 2)


class Companions:
    """Dummy sequences that run beside a deterministic pipeline's requests, so that there are
    `wanted` sequences.

    The CPU's kernels for a batch give each row the same result in any batch, bit for bit. But a row
    that is alone, or among fewer sequences than there are threads, goes through kernels with
    another order of sums.
    """

    def __init__(self, pipeline: Any, wanted: int, sees: bool = False) -> None:
        self._pipeline = pipeline
        self._sees = sees
        self._wanted = wanted
        self._ids = count(1 << 40)  # far above the ids of requests
        self._handles: list[Any] = []

    def join(self, running: int) -> None:
        """Start as many companions as `running` requests need. Surplus ones end by themselves."""
        if not self._wanted:
            return
        self._handles = [handle for handle in self._handles if handle.get_status() == RUNNING]
        for _ in range(self._wanted - running - len(self._handles) if running else 0):
            config = genai.GenerationConfig(
                max_new_tokens=_COMPANION_TOKENS, ignore_eos=True, apply_chat_template=False
            )
            prompt = shortest_prompt(self._sees)
            self._handles.append(self._pipeline.add_request(next(self._ids), prompt, config))

    def leave(self) -> bool:
        """Cancel all companions, which leave in the pipeline's next step. Returns whether any
        ran.
        """
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.cancel()
        return bool(handles)


class Tokenizer:
    """GenAI's tokenizer of a model: ids of texts and texts of ids, many in one call.

    A text with `cut_at` tokens or more counts as cut. `begins_with` is the special token before a
    text, where GenAI adds none.
    """

    def __init__(
        self, tokenizer: Any, cut_at: int | None = None, begins_with: int | None = None
    ) -> None:
        self.end: int = tokenizer.get_eos_token_id()
        self._tokenizer = tokenizer
        self._cut_at = cut_at
        self._begin = [] if begins_with is None else [begins_with]
        self._special: dict[int, str] = {}
        """By token seen so far: its text if it is special, else empty."""

    @cached_property
    def raw(self) -> dict[int, bytes]:
        """The bytes of each token, which may be parts of characters."""
        return {number: raw for raw, number in self._tokenizer.get_vocab().items()}

    @cached_property
    def vocabulary(self) -> int:
        """The number of token ids."""
        return max(self.raw) + 1

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, without added ones. Raises `ContextLengthError` if it would be
        cut.
        """
        return self.encoded(text, special_tokens=False, names=False).ids

    def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        """As `tokenize`, with special tokens and each token's own text if they are wanted."""
        (token_ids,) = self.encode([text], special_tokens)
        self.check_uncut(token_ids, "text", "prompt")
        return Tokens(token_ids, self.token_texts(token_ids) if names else None)

    def detokenize(self, token_ids: list[int]) -> str:
        check_id_range(token_ids, self.vocabulary, "tokens")
        return self.decode([token_ids])[0]

    def encode(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        """The ids of each text. The rows of one call are as long as its longest text, so a long
        text gets a call of its own. So does an empty one: several of them would share a row.
        """
        short = [text for text in texts if 0 < len(text) <= _BATCHED_CHARS]
        rows = iter(self._encode_batch(short, special_tokens) if short else [])
        begin = self._begin if special_tokens else []
        return [
            begin
            + (
                next(rows)
                if 0 < len(text) <= _BATCHED_CHARS
                else self._encode_batch([text], special_tokens)[0]
            )
            for text in texts
        ]

    def _encode_batch(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        encoded = self._tokenizer.encode(texts, add_special_tokens=special_tokens)
        ids, mask = encoded.input_ids.data, encoded.attention_mask.data.astype(bool)
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

    def check_uncut(self, token_ids: Sequence[int], what: str, param: str) -> None:
        if self._cut_at is not None and len(token_ids) >= self._cut_at:
            raise ContextLengthError(
                f"prompt is too long: the tokenizer of a GGUF model takes no {what} of more than"
                f" {self._cut_at - 1} tokens",
                param=param,
            )

    def decode(self, sequences: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each sequence. Shorter sequences are padded. If special tokens show, the
        padding would show too: then only sequences of one length share a call.
        """
        sizes = {len(s) for s in sequences if s}
        if skip_special_tokens or len(sizes) < 2:
            filled = [s for s in sequences if s]
            texts = iter(self._tokenizer.decode(filled, skip_special_tokens) if filled else [])
            return [next(texts) if s else "" for s in sequences]
        parts = [[s if len(s) == size else [] for s in sequences] for size in sizes]
        return [
            "".join(found) for found in zip(*(self.decode(p, False) for p in parts), strict=True)
        ]

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        """The text of each token by itself."""
        ids = list(ids)
        known = list(dict.fromkeys(ids))  # a long text repeats its tokens
        texts = self.decode([[one] for one in known], skip_special_tokens=False)
        named = dict(zip(known, texts, strict=True))
        return [named[one] for one in ids]

    def shown(self, ids: list[int], marks: tuple[str, ...]) -> list[int]:
        """The tokens without special ones; special tokens that are part of one of `marks` stay."""
        if not marks:
            return ids
        new = [[i] for i in dict.fromkeys(ids) if i not in self._special]
        texts = zip(new, self.decode(new), self.decode(new, False), strict=True)
        self._special |= {i: "" if hidden else text for (i,), hidden, text in texts}
        return [i for i in ids if not (s := self._special[i]) or any(s.strip() in m for m in marks)]

    def decode_each(self, sequences: list[list[int]], special: list[bool]) -> list[str]:
        """The texts of all sequences. `special` says for each whether its special tokens show."""
        if not any(special):
            return self.decode(sequences)
        pairs = list(zip(sequences, special, strict=True))
        hidden = self.decode([[] if shows else s for s, shows in pairs])
        shown = self.decode([s if shows else [] for s, shows in pairs], skip_special_tokens=False)
        return [a or b for a, b in zip(hidden, shown, strict=True)]

    def chat_template(self) -> str | None:
        """The model's own template, before GenAI simplified it."""
        return own_template(self._tokenizer)

    def special_tokens(self) -> dict[str, str]:
        """The special tokens, by the names that chat templates use."""
        tokens = {
            "bos_token": self._tokenizer.get_bos_token(),
            "eos_token": self._tokenizer.get_eos_token(),
            "pad_token": self._tokenizer.get_pad_token(),
        }
        return {name: text for name, text in tokens.items() if text}
