"""What is mended in the graphs that GenAI writes of a GGUF file."""

import struct
from importlib import import_module

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from penstock.engines.openvino.model.gguf import Header
from penstock.engines.openvino.model.gguf_ir import saved_ir, scale_rope, split_texts
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.errors import EngineStartError

HEAD = 8


def rotary(base, compressed):
    """A graph that multiplies positions by the frequencies of a base, as GenAI writes them."""
    frequencies = base ** (-np.arange(HEAD // 2) / (HEAD // 2))
    kind = np.float16 if compressed else np.float32
    constant = ops.constant(frequencies.astype(kind).reshape(1, -1, 1))
    ones = ops.constant(np.ones((1, 1, 1), np.float32))
    positions = ops.multiply(ops.parameter([1, 1, -1], np.float32, "positions"), ones)
    angles = ops.matmul(
        ops.convert(constant, np.float32) if compressed else constant, positions, False, False
    )
    parameter = positions.input_value(0).get_node()
    return frequencies, ov.Model([angles], [parameter], "rotary")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("fields", "factors", "divisors"),
    [
        ({}, (1.0, 1.0, 2.0, 8.0), [1, 1, 2, 8]),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, (), [4] * 4),
    ],
)
def test_rotary_frequencies_are_scaled(compressed, fields, factors, divisors):
    frequencies, model = rotary(500.0, compressed)
    stated = {"general.architecture": "llama", "llama.rope.freq_base": 500.0, **fields}
    scale_rope(model, Header(stated, frozenset(), 0, False, factors))
    (angles,) = (
        ov.Core()
        .compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
            [np.full((1, 1, 1), 3, np.float32)]
        )
        .values()
    )
    assert angles.ravel() == pytest.approx(3 * frequencies / divisors, rel=1e-5)


def test_a_graph_without_these_frequencies_is_refused():
    header = Header({"general.architecture": "llama"}, frozenset(), 0, False, (2.0,) * 4)
    with pytest.raises(EngineStartError, match="rotary frequencies were not found"):
        scale_rope(rotary(500.0, compressed=True)[1], header)


def test_a_graph_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "empty.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    why = r"empty\.gguf' could not be converted: \w+Error: "
    with pytest.raises(EngineStartError, match=why) as it:
        saved_ir(file)
    (log,) = (tmp_path / "cache" / "converted").glob("*.log")
    assert str(it.value).endswith(f" (the log: {log})")


def test_texts_are_split_by_another_expression():
    steps = import_module("openvino_tokenizers.tokenizer_pipeline")
    words = ["[UNK]", "a", "b", "ab", "1", "2", "12"]
    pipeline = steps.TokenizerPipeline(vocab=words)
    pipeline.add_steps(
        [
            steps.SpecialTokensSplit([steps.SpecialToken("[UNK]")]),
            *(steps.RegexSplitStep(split, behaviour="isolate") for split in ("a", r"\p{N}")),
            steps.WordPieceTokenizationStep(words),
            steps.PaddingStep(token="[UNK]"),
        ]
    )
    model = pipeline.get_tokenizer_ov_subgraph()

    def ids(text):
        return ov.Core().compile_model(model, "CPU")([text])["input_ids"].tolist()

    assert ids("ab12") == [[1, 2, 4, 5]]
    split_texts(model, r"[a-z]+|\p{N}+")
    assert ids("ab12") == [[3, 6]]


class Encoder:
    def get_eos_token_id(self):
        return 9

    def encode(self, texts, add_special_tokens):
        rows = np.array([[5, 6]] * len(texts))

        class Tokens:
            input_ids = ov.Tensor(rows)
            attention_mask = ov.Tensor(np.ones_like(rows))

        return Tokens


def test_the_token_before_a_text_where_the_tokenizer_adds_none():
    tokenizer = Tokenizer(Encoder(), begins_with=1)
    assert tokenizer.encode(["a", "b"], special_tokens=True) == [[1, 5, 6]] * 2
    assert tokenizer.encode(["a", "b"], special_tokens=False) == [[5, 6]] * 2
    assert Tokenizer(Encoder()).encode(["a"], special_tokens=True) == [[5, 6]]
