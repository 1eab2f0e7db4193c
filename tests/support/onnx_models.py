"""ONNX models so small that the right answers are known, written by hand: the package `onnx` is not
needed to read them. The fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from word_models import CONTEXT, SPECIAL, VOCABULARY

_INT64, _FLOAT, _INTS = 7, 1, 7
_OPSET = 12


def embedding_onnx(path: Path, file: str = "model.onnx") -> str:
    """A directory like that of `word_models.embedding_model`: a text's vector counts its words."""
    table = np.eye(len(VOCABULARY), dtype=np.float32)[:, len(SPECIAL) :]
    nodes = [_node("Gather", ["table", "input_ids"], "last_hidden_state")]
    _write(path, file, nodes, table, "last_hidden_state", [None, None, table.shape[1]])
    return _described(path, "BertModel")


def rerank_onnx(path: Path) -> str:
    """A document's logit is the sum of the places of its words in the vocabulary, less 8."""
    table = np.arange(len(VOCABULARY), dtype=np.float32)[:, None] - 8
    table[: len(SPECIAL)] = 0
    nodes = [
        _node("Gather", ["table", "input_ids"], "each"),
        _node("ReduceSum", ["each"], "logits", axes=[1], keepdims=[0]),
    ]
    _write(path, "model.onnx", nodes, table, "logits", [None, 1])
    return _described(path, "BertForSequenceClassification")


def write_word_piece(path: Path, **changes: Any) -> None:
    """The `tokenizer.json` of a lower-casing BERT tokenizer with the words of `word_models`."""
    added = [
        {"id": number, "content": name, "special": True} for number, name in enumerate(SPECIAL)
    ]
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    first, second = (
        {"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")
    )
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    described = {
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, end],
            "special_tokens": {
                name: {"id": name, "ids": [VOCABULARY.index(name)], "tokens": [name]}
                for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: number for number, word in enumerate(VOCABULARY)},
        },
        **changes,
    }
    (path / "tokenizer.json").write_text(json.dumps(described))


def _described(path: Path, architecture: str) -> str:
    write_word_piece(path)
    config = {"architectures": [architecture], "max_position_embeddings": CONTEXT}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def _write(
    path: Path,
    file: str,
    nodes: list[bytes],
    table: NDArray[np.float32],
    output: str,
    shape: list[int | None],
) -> None:
    weights = b"".join(_number(1, size) for size in table.shape)
    weights += _number(2, _FLOAT) + _text(8, "table") + _field(9, table.tobytes())
    graph = b"".join(_field(1, node) for node in nodes)
    graph += _text(2, "graph") + _field(5, weights)
    for name in ("input_ids", "attention_mask"):
        graph += _field(11, _tensor(name, _INT64, [None, None]))
    graph += _field(12, _tensor(output, _FLOAT, shape))
    opset = _text(1, "") + _number(2, _OPSET)
    (path / file).parent.mkdir(exist_ok=True)
    (path / file).write_bytes(_number(1, 7) + _field(7, graph) + _field(8, opset))


def _node(kind: str, inputs: list[str], output: str, **attributes: list[int]) -> bytes:
    node = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, kind)
    for name, values in attributes.items():
        if name == "keepdims":
            given = _number(3, values[0]) + _number(20, 2)
        else:
            given = b"".join(_number(8, value) for value in values) + _number(20, _INTS)
        node += _field(5, _text(1, name) + given)
    return node


def _tensor(name: str, kind: int, shape: list[int | None]) -> bytes:
    sizes = [
        _text(2, f"d{place}") if size is None else _number(1, size)
        for place, size in enumerate(shape)
    ]
    dimensions = b"".join(_field(1, size) for size in sizes)
    return _text(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, dimensions)))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
