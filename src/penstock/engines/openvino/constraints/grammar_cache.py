"""The cache of compiled grammars, which a thread fills while the pipeline steps.

The engine itself compiles a grammar in the step that first uses it, and caches it for ever. Here a
grammar is compiled before its first step, and the whole cache is emptied when it is full.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops

from penstock.engines.openvino.constraints.throttle import SERVING_SECONDS, Allowance

KEPT = 256
"""Capacity of the cache in grammars; each takes 30 to 300 kB."""
_SMALL = 2_000
"""Grammars of at most this many characters do not wait: they compile in a few milliseconds."""


class CompiledGrammars:
    """The compiled grammars of one tokenizer. `logits` returns the size of the model's logits; it
    is called on first use.
    """

    def __init__(self, tokenizer: Any, logits: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._logits = logits
        self._ready: set[str] = set()
        self._pipeline: BarePipeline | None = None

    def ready(self, grammar: str) -> bool:
        """Whether the grammar is compiled, so that a step may use it."""
        return grammar in self._ready

    def compile(self, grammar: str) -> None:
        """Compile a grammar unless it is cached. Passes on the engine's errors."""
        if grammar in self._ready:
            return
        if self._pipeline is None:
            self._pipeline = BarePipeline(self._tokenizer, self._logits())
        self._pipeline.compile(grammar)
        self._ready.add(grammar)

    @property
    def full(self) -> bool:
        """Whether the cache is full."""
        return len(self._ready) >= KEPT

    def clear(self) -> None:
        """Empty the cache while nothing compiles. Running requests keep their grammars."""
        if self._pipeline is not None:
            self._ready.clear()
            self._pipeline.empty_cache()


@dataclass(eq=False)
class _Task:
    """A queued grammar, with a future for the outcome."""

    grammars: CompiledGrammars
    grammar: str
    done: Future[None] = field(default_factory=Future)


class Compiling:
    """Compiles queued grammars in one thread.

    The thread works little while the pipelines serve requests, which need the same processors and
    locks. If not `background`, `start` compiles at once, in the caller's thread: for two models
    that share one cache.
    """

    def __init__(self, background: bool) -> None:
        self._background = background
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._served_at = -SERVING_SECONDS
        self._allowance = Allowance()

    @property
    def idle(self) -> bool:
        """Whether nothing is being compiled."""
        return self._running is None or self._running.done.done()

    def start(self, grammars: CompiledGrammars, grammar: str) -> Future[None]:
        """Queue a grammar. The future resolves once it is compiled, or holds the engine's error."""
        task = _Task(grammars, grammar)
        if self._background:
            self._waiting.append(task)
        else:
            self._compile(task)
        return task.done

    def go_on(self, serving: bool) -> None:
        """Start the next grammar if its time has come. `serving`: the pipelines have requests."""
        if serving:
            self._served_at = time.monotonic()
        if not self._waiting or not self.idle:
            return
        only_small = (
            time.monotonic() - self._served_at < SERVING_SECONDS
            and self._allowance.left(time.monotonic()) < 0
        )
        task = next(
            (task for task in self._waiting if not only_small or len(task.grammar) <= _SMALL),
            None,
        )
        if task is None:
            return
        self._waiting.remove(task)
        if not task.done.set_running_or_notify_cancel():
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "penstock-grammars")
        self._running = task
        self._thread.submit(self._compile, task)

    def _compile(self, task: _Task) -> None:
        begin = time.thread_time()
        error: Exception | None = None
        try:
            task.grammars.compile(task.grammar)
        except Exception as raised:
            error = raised
        if len(task.grammar) > _SMALL:
            self._allowance.use(time.thread_time() - begin, time.monotonic())
        if error is None:
            task.done.set_result(None)
        else:
            task.done.set_exception(error)


_WIDTH = 16
_ANY_TOKEN = 0
_NEARLY_NOTHING = 'root ::= "a"'


class BarePipeline:
    """Compiles grammars into the cache of `tokenizer`, with a dummy model.

    The engine compiles a grammar in the middle of a step, and holds the interpreter lock meanwhile.
    Two pipelines with one tokenizer share the cache. So the model's pipeline finds at no cost what
    another thread compiled here, and the cache can be emptied from here. `vocabulary` is the size
    of the model's logits: pipelines of different sizes would empty each other's cache.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pipeline = _pipeline(tokenizer, vocabulary)
        self._other: Any = None

    def compile(self, grammar: str, tokens: int = 1, seed: int = 0) -> list[int]:
        """Compile a grammar, and generate up to `tokens` random tokens with it."""
        return self._write(self._pipeline, grammar, tokens, seed)

    def empty_cache(self) -> None:
        """Empty the cache while nothing else uses the tokenizer. Requests keep their grammars."""
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
