"""Writes a GGUF file of a language model with random weights, so that speed can be measured without
a download.

A Qwen3-shaped decoder with tied embeddings and a byte-level vocabulary. Needs `gguf` (in the `dev`
extra).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content']"
    " }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `context` is in tokens."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    context: int = 4096


TINY = Shape(
    hidden=64, layers=2, heads=2, kv_heads=1, head_size=32, feed_forward=128, vocabulary=512
)
SMALL_27M = Shape(
    hidden=512, layers=8, heads=8, kv_heads=4, head_size=64, feed_forward=1536, vocabulary=2048
)


def write_random_model(path: Path, shape: Shape, seed: int = 0) -> int:
    """Write the file and return the number of parameters."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_name("random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, shape.vocabulary)
    parameters = 0
    for name, size in _tensors(shape).items():
        norm = "norm" in name
        values = (
            np.ones(size, np.float32)
            if norm
            else (random.standard_normal(size) * 0.05).astype(np.float16)
        )
        writer.add_tensor(name, values)
        parameters += values.size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return parameters


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm": (shape.hidden,),
            "ffn_norm": (shape.hidden,),
            "attn_q_norm": (shape.head_size,),
            "attn_k_norm": (shape.head_size,),
            "attn_q": (queries, shape.hidden),
            "attn_k": (keys, shape.hidden),
            "attn_v": (keys, shape.hidden),
            "attn_output": (shape.hidden, queries),
            "ffn_gate": (shape.feed_forward, shape.hidden),
            "ffn_up": (shape.feed_forward, shape.hidden),
            "ffn_down": (shape.hidden, shape.feed_forward),
        }
        tensors |= {f"blk.{layer}.{name}.weight": size for name, size in parts.items()}
    return tensors | {"output_norm.weight": (shape.hidden,)}


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """Bytes, then the likeliest pairs of letters, then the special tokens."""
    tokens = _byte_characters()
    merges: list[str] = []
    for left, right in product(["\u0120", *_LETTERS], _LETTERS):
        if len(tokens) + len(SPECIAL_TOKENS) == vocabulary:
            break
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    pairs = [merge.replace(" ", "") for merge in merges]
    for left, right in product(pairs, pairs):
        if len(tokens) + len(SPECIAL_TOKENS) == vocabulary:
            break
        merges.append(f"{left} {right}")
        tokens.append(left + right)
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *SPECIAL_TOKENS])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_pad_token_id(vocabulary - 3)
    writer.add_eos_token_id(vocabulary - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE vocabularies."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    substitutes = iter(range(256, 512))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]
