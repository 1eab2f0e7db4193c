"""Reads the header of a GGUF file: what the model is, what GenAI 2026.4.1 reads wrongly of it, and
how that is mended (`gguf_ir.py`). What cannot be mended is refused.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from penstock.engines.openvino.model.files import FALLBACK_CONTEXT
from penstock.errors import EngineStartError

_ROPE_FACTORS = "rope_freqs.weight"
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_WORDS = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3, _QWEN_2 = (_WORDS.replace("DIGITS", digits) for digits in (r"\p{N}{1,3}", r"\p{N}"))
_BY_NAME = {
    **dict.fromkeys(("default", "qwen2", "smollm")),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"), _LLAMA_3),
    "deepseek-r1-qwen": _QWEN_2,
}
"""How a text is split before its merges, by `tokenizer.ggml.pre`; None: as GenAI does it, which
takes "default" for the names that it does not know.
"""
_WITHOUT_IT = (
    "give the model in Hugging Face's form, or serve the file by llama.cpp and use --engine remote"
)
_WEIGHTS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2), 8: (32, 34)},  # F32, F16, BF16, Q8_0
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24)},  # Q4_0, Q4_1, Q5_0, Q5_1
    **{10: (256, 84), 11: (256, 110), 12: (256, 144)},  # Q2_K, Q3_K, Q4_K
    **{13: (256, 176), 14: (256, 210)},  # Q5_K, Q6_K
}
"""Types of weights by their number: the numbers in a block, and its bytes."""
_NAMES = {
    **{0: "F32", 1: "F16", 8: "Q8_0", 2: "Q4_0", 3: "Q4_1", 12: "Q4_K", 14: "Q6_K"},
    **{30: "BF16", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 20: "IQ4_NL"},
}
_LOADED = (1, 8, 2, 3, 12, 14)
"""Types of matrices that GenAI 2026.4.1 loads."""
_NUMBERS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i"},
    **{6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9
_F32 = 0
_LENGTH = struct.Struct("<Q")
_MENDS = 1
"""Counts the changes to what is mended, as `_RECIPE` (source.py) counts those of conversions."""
_LONGEST = 1 << 28
"""Bytes of a text: no file of a model states a longer one."""


class Header(NamedTuple):
    """What a file says of itself: `fields` by name, a list as its length; the types of its
    matrices; how many bytes the file must have; whether queries and keys have biases; and the
    numbers by which the rotary frequencies are divided (Llama 3.1 and later), if there are any.
    """

    fields: dict[str, Any]
    matrices: frozenset[int]
    size: int
    biased: bool = False
    rope_factors: tuple[float, ...] = ()

    @property
    def split(self) -> str | None:
        """The regular expression that splits a text; None: GenAI's own is right."""
        return _BY_NAME.get(self.fields.get("tokenizer.ggml.pre", ""))

    @property
    def begins_with(self) -> int | None:
        """The id of the token that the tokenizer puts before a text, if it does."""
        by_default = self.split == _LLAMA_3  # in llama.cpp
        begin = self.fields.get("tokenizer.ggml.bos_token_id")
        adds = self.fields.get("tokenizer.ggml.add_bos_token", by_default)
        return begin if adds and isinstance(begin, int) else None

    @property
    def rope_divisor(self) -> float:
        """What all rotary frequencies are divided by; those that the file lists come on top."""
        if self.of_architecture("rope.scaling.type") == "linear":
            return self.number("rope.scaling.factor") or 1
        return self.number("rope.scale_linear") or 1

    @property
    def scales_rope(self) -> bool:
        """Whether the rotary frequencies are not those of the base alone."""
        return self.rope_divisor != 1 or bool(self.rope_factors)

    @property
    def needs_mending(self) -> bool:
        """Whether GenAI's graph of it, or its tokenizer, is wrong."""
        return self.split is not None or self.scales_rope

    def of_architecture(self, name: str) -> Any:
        """A field that stands under the name of the architecture."""
        return self.fields.get(f"{self.fields.get('general.architecture')}.{name}")

    def number(self, name: str) -> float:
        """As `of_architecture`; 0 where there is no number above 0."""
        found = self.of_architecture(name)
        return found if isinstance(found, (int, float)) and found > 0 else 0


def read_header(path: Path) -> Header:
    """Raises `EngineStartError`, also for what its reader cannot read."""
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)  # a large vocabulary takes a moment
def _read(path: Path, size: int, _: int) -> Header:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise EngineStartError(f"'{path}' is not a GGUF file")
            _number(file, "I")  # the version
            tensors, count = _number(file, "Q"), _number(file, "Q")
            fields = dict(_field(file) for _ in range(count))
            matrices, end, biased, rope = set[int](), 0, False, -1
            for _ in range(tensors):
                name = _text(file)
                shape = [_number(file, "Q") for _ in range(_number(file, "I"))]
                kind, begin = _number(file, "I"), _number(file, "Q")
                block, nbytes = _WEIGHTS.get(kind, (1, 0))
                end = max(end, begin + -(-math.prod(shape) // block) * nbytes)
                if len(shape) > 1:
                    matrices.add(kind)
                elif shape and name == _ROPE_FACTORS and kind == _F32:
                    rope, count = begin, shape[0]
                biased = biased or name.endswith((".attn_q.bias", ".attn_k.bias"))
            alignment = max(1, int(fields.get("general.alignment", 32)))
            data = -(-file.tell() // alignment) * alignment
            factors: tuple[float, ...] = ()
            if rope >= 0 and size >= data + end:
                file.seek(data + rope)
                factors = struct.unpack(f"<{count}f", file.read(4 * count))
            promised = data + end if tensors else 0
            return Header(fields, frozenset(matrices), promised, biased, factors)
    except (struct.error, KeyError, OverflowError, MemoryError, RecursionError, ValueError):
        raise EngineStartError(f"the header of '{path}' is cut off or damaged") from None


def mends_of(path: Path) -> int | None:
    """What a job must know of how a file is mended: a number that grows when that changes answers.
    None if GenAI's reading is right, or if the start refuses the file.
    """
    try:
        header = read_header(path)
    except (OSError, ValueError, EngineStartError):
        return None
    return _MENDS if header.needs_mending or header.begins_with is not None else None


def gguf_context_length(path: Path) -> int:
    """The context in tokens that the file states."""
    return int(read_header(path).number("context_length")) or FALLBACK_CONTEXT


def gguf_vocabulary(path: Path) -> int | None:
    """The number of tokens that the file lists; None if it has no list."""
    return read_header(path).fields.get("tokenizer.ggml.tokens")


def check_gguf(path: Path) -> None:
    """Raise `EngineStartError` for a file that GenAI would not load, or not as what it is: of one
    that is cut off, for instance, it takes whatever is in memory behind its end.
    """
    header = read_header(path)
    if header.fields.get("split.count") not in (None, 0, 1):
        raise EngineStartError(
            f"'{path}' is a part of a model: join the parts with llama.cpp's"
            " `llama-gguf-split --merge`"
        )
    if why := _unlike(header):
        raise EngineStartError(
            f"'{path}' {why}, which the openvino engine does not run from a GGUF file:"
            f" {_WITHOUT_IT}"
        )
    if unknown := sorted(header.matrices - set(_LOADED)):
        names = ", ".join(_NAMES.get(kind, str(kind)) for kind in unknown)
        raise EngineStartError(
            f"'{path}' has weights of the type {names}, which the openvino engine does not read:"
            f" take a file with {', '.join(_NAMES[kind] for kind in _LOADED)} alone"
        )
    found = path.stat().st_size
    if found < header.size:
        raise EngineStartError(
            f"'{path}' is cut off: it has {found:,} bytes, and its header promises"
            f" {header.size:,}; fetch it again"
        )


def _unlike(header: Header) -> str:
    """What the model has that GenAI's graph of it would lack; empty if there is nothing."""
    architecture = header.fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        return f"is of the architecture '{architecture}' (not {', '.join(_ARCHITECTURES)})"
    if header.of_architecture("expert_count"):
        return "has experts"
    if header.biased and architecture == "llama":  # of which it does not turn the order
        return "is of the architecture 'llama' with biases of queries and keys"
    scaling = header.of_architecture("rope.scaling.type") or "none"
    if scaling not in ("none", "linear"):
        return f"scales its positions by '{scaling}'"
    heads, width = header.number("attention.head_count"), header.number("embedding_length")
    head = header.number("attention.key_length") or (heads and width // heads)
    if (turned := header.number("rope.dimension_count") or head) != head:
        return f"turns {turned:g} of the {head:g} numbers of a head"
    return ""


def check_gguf_tokenizer(path: Path) -> None:
    """Raise `EngineStartError` for a file whose tokenizer GenAI does not read as it is."""
    fields = read_header(path).fields
    kind, name = (fields.get(f"tokenizer.ggml.{field}") for field in ("model", "pre"))
    if kind != "gpt2" or name not in _BY_NAME:
        raise EngineStartError(
            f"'{path}' has a tokenizer (tokenizer.ggml.model '{kind}', pre '{name}') that the"
            " openvino engine does not read: set `tokenizer` to a directory with an"
            f" openvino_tokenizer.xml of it, or {_WITHOUT_IT}"
        )


def _field(file: BinaryIO) -> tuple[str, Any]:
    name = _text(file)
    return name, _value(file, _number(file, "I"))


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind == _ARRAY:
        item, size = _number(file, "I"), _number(file, "Q")
        for _ in range(size):
            if item == _STRING:  # there are many
                file.seek(_length(file), os.SEEK_CUR)
            else:
                _value(file, item)
        return size
    return _number(file, _NUMBERS[kind])


def _text(file: BinaryIO) -> str:
    return file.read(_length(file)).decode(errors="replace")


def _length(file: BinaryIO) -> int:
    length: int = _LENGTH.unpack(file.read(8))[0]
    if length > _LONGEST:
        raise ValueError
    return length


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]
