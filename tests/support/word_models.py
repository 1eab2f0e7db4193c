"""Embedding and rerank models for OpenVINO, so small that the right answers are known.

Every word has a dimension of its own: a text's vector counts its words, and a document's score the
words it shares with the query.
"""

import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

# Imported so for want of type stubs.
steps = import_module("openvino_tokenizers.tokenizer_pipeline")
utils = import_module("openvino_tokenizers.utils")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = ["red", "green", "blue", "fox", "dog", "hill", "river", "sea"]
VOCABULARY = SPECIAL + WORDS
CONTEXT = 16


def write_tokenizer(path: Path, token_types: bool, pads_right: bool = True) -> None:
    pipeline = steps.TokenizerPipeline(vocab=VOCABULARY, skip_tokens=list(range(len(SPECIAL))))
    cls, sep = (steps.AddToken(token=name, token_type_id=0) for name in ("[CLS]", "[SEP]"))
    pipeline.add_steps(
        [
            steps.SpecialTokensSplit([steps.SpecialToken(name) for name in SPECIAL]),
            steps.WhitespaceSplitStep(),
            steps.WordPieceTokenizationStep(VOCABULARY),
            steps.TruncationStep(max_length=CONTEXT),
            steps.CombineSegmentsStep([cls, steps.Sequence(token_type_id=0), sep]),
            steps.PaddingStep(token="[PAD]", pad_right=pads_right),
            steps.VocabDecoderStep(vocab=VOCABULARY),
            steps.FuseStep(),
        ]
    )
    model = pipeline.get_tokenizer_ov_subgraph()
    kept = [
        output for output in model.outputs if token_types or "token_type_ids" not in output.names
    ]
    tokenizer = ov.Model(kept, model.get_parameters(), "tokenizer")
    tokenizer.add_sinks(model.get_sinks())
    utils.change_outputs_type(tokenizer, ov.Type.i64)
    one, pair = (
        {"ids": [2, -1, 3], "type_ids": [0, 0, 0]},
        {"ids": [2, -1, 3, -2, 3], "type_ids": [0, 0, 0, 1, 1]},
    )
    tokenizer.set_rt_info(
        json.dumps({"single": one, "pair": pair}), "processed_post_processor_template"
    )
    tokenizer.set_rt_info(version("openvino-tokenizers"), "openvino_tokenizers_version")
    ov.save_model(tokenizer, path / "openvino_tokenizer.xml")
    detokenizer = pipeline.get_detokenizer_ov_subgraph()
    utils.change_inputs_type(detokenizer, ov.Type.i64)
    ov.save_model(detokenizer, path / "openvino_detokenizer.xml")


def parameter(name: str) -> Any:
    node = ops.parameter([-1, -1], np.int64, name)
    node.output(0).tensor.add_names({name})
    return node


def word_vectors(ids: Any) -> Any:
    table = np.eye(len(VOCABULARY), dtype=np.float32)[:, len(SPECIAL) :]
    return ops.gather(ops.constant(table), ids, ops.constant(0))


def write_model(path: Path, architecture: str, inputs: list[Any], output: Any, name: str) -> None:
    output.output(0).tensor.add_names({name})
    ov.save_model(
        ov.Model([output], inputs, "model"), path / "openvino_model.xml", compress_to_fp16=False
    )
    config = {"architectures": [architecture], "max_position_embeddings": CONTEXT}
    (path / "config.json").write_text(json.dumps(config))


def embedding_model(path: Path) -> str:
    write_tokenizer(path, token_types=False)
    inputs = [parameter("input_ids"), parameter("attention_mask")]
    write_model(path, "BertModel", inputs, word_vectors(inputs[0]), "last_hidden_state")
    return str(path)


def positional_model(path: Path) -> str:
    """An embedding model whose vector of a token is that of its word, times its position."""
    write_tokenizer(path, token_types=False)
    inputs = [parameter(name) for name in ("input_ids", "attention_mask", "position_ids")]
    states = ops.multiply(word_vectors(inputs[0]), column(inputs[2]))
    write_model(path, "Qwen2Model", inputs, states, "last_hidden_state")
    return str(path)


def causal_model(path: Path) -> str:
    """An embedding model whose last token has the sum of all words. Shorter texts are padded at the
    left.
    """
    write_tokenizer(path, token_types=False, pads_right=False)
    ids, mask = inputs = [parameter("input_ids"), parameter("attention_mask")]
    states = ops.cum_sum(ops.multiply(word_vectors(ids), column(mask)), ops.constant(1))
    write_model(path, "Qwen3Model", inputs, states, "last_hidden_state")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text('{"pooling_mode": "lasttoken"}')
    return str(path)


def sparse_model(path: Path) -> str:
    """A head of logits: of each word 1, of the word after it in the vocabulary 0.5, else -1."""
    write_tokenizer(path, token_types=False)
    inputs = [parameter("input_ids"), parameter("attention_mask")]
    size = len(VOCABULARY)
    table = 2 * np.eye(size, dtype=np.float32) + 1.5 * np.eye(size, k=1, dtype=np.float32) - 1
    table[: len(SPECIAL)] = -1
    logits = ops.gather(ops.constant(table), inputs[0], ops.constant(0))
    write_model(path, "BertForMaskedLM", inputs, logits, "logits")
    return str(path)


def rerank_model(path: Path, token_types: bool = True) -> str:
    write_tokenizer(path, token_types)
    ids, mask, types = inputs = [
        parameter(n) for n in ("input_ids", "attention_mask", "token_type_ids")
    ]
    words = ops.multiply(word_vectors(ids), column(mask))
    document = ops.reduce_sum(ops.multiply(words, column(types)), ops.constant(1))
    query = ops.subtract(ops.reduce_sum(words, ops.constant(1)), document)
    shared = ops.reduce_sum(ops.multiply(query, document), ops.constant(1), keep_dims=True)
    write_model(path, "BertForSequenceClassification", inputs, shared, "logits")
    return str(path)


def column(ids: Any) -> Any:
    return ops.convert(ops.unsqueeze(ids, ops.constant(2)), "f32")
