"""A pipeline that compiles grammars: it has the model's tokenizer and a dummy model.

The engine compiles a grammar in the middle of a step, holds the interpreter lock meanwhile, and
caches the result with the tokenizer for ever. Two pipelines with one tokenizer share this cache. So
the model's pipeline finds a grammar that was compiled here, in another thread, at no cost, and the
cache can be emptied from here.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

_WIDTH = 16
_ANY_TOKEN = 0
_NEARLY_NOTHING = 'root ::= "a"'


class BarePipeline:
    """Compiles grammars into the cache of `tokenizer`. `vocabulary` is the size of the model's
    logits: pipelines of different sizes would empty each other's cache.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pipeline = _pipeline(tokenizer, vocabulary)
        self._other: Any = None

    def compile(self, grammar: str, tokens: int = 1, seed: int = 0) -> list[int]:
        """Compile a grammar and generate up to `tokens` random tokens with it. Passes on the
        engine's errors.
        """
        return self._write(self._pipeline, grammar, tokens, seed)

    def forget(self) -> None:
        """Empty the cache. Running requests keep their grammars. Nothing else may use the tokenizer
        meanwhile.
        """
        if self._other is None:
            self._other = _pipeline(self._tokenizer, self._vocabulary + 1)
        for pipeline in (self._other, self._pipeline):
            self._write(pipeline, _NEARLY_NOTHING, 1)

    def _write(self, pipeline: Any, grammar: str, tokens: int, seed: int = 0) -> list[int]:
        config = genai.GenerationConfig(
            max_new_tokens=tokens, apply_chat_template=False, do_sample=True
        )
        config.rng_seed = seed
        end = self._tokenizer.get_eos_token_id()
        if end >= 0:
            config.set_eos_token_id(end)
        config.structured_output_config = genai.StructuredOutputConfig(grammar=grammar)
        prompt = ov.Tensor(np.array([[_ANY_TOKEN]], dtype=np.int64))
        ids: list[int] = pipeline.generate([prompt], [config])[0].m_generation_ids[0]
        return ids


def _pipeline(tokenizer: Any, vocabulary: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 64
    scheduler.max_num_seqs = 1
    scheduler.enable_prefix_caching = False
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        ov.save_model(_model(vocabulary), f"{directory}/openvino_model.xml")
        return genai.ContinuousBatchingPipeline(
            directory, tokenizer, scheduler, "CPU", INFERENCE_NUM_THREADS=1
        )


_INPUTS = {"input_ids": 2, "attention_mask": 2, "position_ids": 2, "beam_idx": 1}


def _input(name: str, rank: int) -> Any:
    kind = np.int32 if name == "beam_idx" else np.int64
    node = ops.parameter([-1] * rank, kind, name=name)
    node.output(0).set_names({name})
    return node


def _model(vocabulary: int) -> ov.Model:
    """A model that finds all tokens equally likely. Its one attention layer is there because the
    pipeline needs a KV cache.
    """
    inputs = [_input(name, rank) for name, rank in _INPUTS.items()]
    ids, mask, _, beam = inputs
    table = ops.constant(np.zeros((1, _WIDTH), dtype=np.float32))
    zeros = ops.gather(table, ops.multiply(ids, ops.constant(np.int64(0))), ops.constant(0))
    heads = ops.unsqueeze(zeros, ops.constant(1))
    size = ops.gather(ops.shape_of(ids), ops.constant(np.array([0])), ops.constant(0))
    empty = ops.broadcast(
        ops.constant(np.float32(0)),
        ops.concat([size, ops.constant(np.array([1, 0, _WIDTH], dtype=np.int64))], 0),
    )
    writes, cached = [], []
    for name in ("key", "value"):
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape([-1, 1, -1, _WIDTH]), ov.Type.f32
        info.variable_id = f"past_key_values.0.{name}present.0.{name}"
        variable = ov.op.util.Variable(info)
        past = ops.gather(ops.read_value(empty, variable), beam, ops.constant(0))
        whole = ops.concat([past, heads], 2)
        writes.append(ops.assign(whole, variable))
        cached.append(whole)
    visible = ops.unsqueeze(ops.convert(mask, np.float32), ops.constant(np.array([1, 2])))
    attended = ops.squeeze(
        ops.scaled_dot_product_attention(heads, *cached, visible), ops.constant(1)
    )
    weights = ops.constant(np.zeros((_WIDTH, vocabulary), dtype=np.float32))
    logits = ops.matmul(attended, weights, False, False)
    result = ops.result(logits, name="logits")
    result.output(0).set_names({"logits"})
    return ov.Model([result], writes, inputs, "bare")
