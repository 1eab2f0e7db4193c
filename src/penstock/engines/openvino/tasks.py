"""Models that do not generate text, inside the worker process: what they have in common, and the
models that embed texts.

They have the methods of `Generation` that the worker calls. `Embedding` and `Rerank` work in steps;
calls of speech are answered at once.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai as genai

from penstock.engines.base import Capabilities
from penstock.engines.openvino.model.files import (
    MODEL_KINDS,
    TASKS_OF,
    Pooling,
    instruction_for,
    instructions_of,
    lowers_texts,
    pooling_of,
    sees,
)
from penstock.engines.openvino.options import Load, OpenVINOOptions, failure_of, reason_of
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.openvino.states import TokenModel, put_through, shortened, sparse, text_layers
from penstock.engines.process import Call, Failed, Ready, Reply, Submit
from penstock.engines.sampling import check_id_range
from penstock.errors import EngineError, RequestError, UnsupportedError, context_overflow
from penstock.types import Embeddings, SparseVector, Tokens, Usage

_CALLS_AT_ONCE = 8
"""Calls in the worker at a time. They are answered one by one; there must always be a next one."""
_BATCH_TOKENS = 1024
"""The tokens of one pipeline call, with padding. In calls of 8,192 tokens, which do not fit into
the processor's caches, MiniLM takes twice the processor time for a text.
"""
BATCH_CHARACTERS = 1 << 20
NO_LIMIT = 2**30
"""A limit for tokenizers, which cut long texts if they have none. A 32-bit float holds it
exactly.
"""


def load_task(load: Load) -> tuple[Task, Ready]:
    """Load the model and say what it can do."""
    model = _kind_of(load)(load.path, load.options, load.context_length)
    at_once = load.options.max_num_seqs if load.task == "embed" else _CALLS_AT_ONCE
    capabilities = Capabilities(
        TASKS_OF[load.task],
        load.context_length,
        at_once,
        batch_in_flight=2 * at_once if load.task == "embed" else 0,
        vocabulary=model.vocabulary,
        vectors=model.vectors,
        inputs=model.inputs,
    )
    return model, Ready(capabilities, model.chat_template, model.special_tokens())


class Task:
    """A model that answers calls."""

    kind = ""
    pause = 0.0
    vocabulary = 0
    vectors: tuple[str, ...] = ("dense",)
    inputs: tuple[str, ...] = ("text",)
    chat_template: str | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something to `step`."""
        return False

    def __init__(self, path: str, options: OpenVINOOptions, context_length: int) -> None:
        self._path = path
        self._options = options
        self._context_length = context_length
        self._properties = {**options.device_properties(), **options.properties}
        self._batch_tokens = 0 if options.deterministic else _BATCH_TOKENS
        """The tokens of one pipeline call. 0: each text has a call of its own."""
        self._tokenizer = genai.Tokenizer(path)
        plain = Tokenizer(self._tokenizer)
        self.detokenize, self.special_tokens = plain.detokenize, plain.special_tokens
        self._token_texts = plain.token_texts
        self._start()

    def _start(self) -> None:
        raise NotImplementedError

    # Face of the worker
    def submit(self, submits: Iterable[Submit]) -> list[Failed]:
        error = self._unsupported("prompts")
        return [Failed.of(submit.id, error) for submit in submits]

    def abort(self, request_id: int) -> None:
        """Does nothing: a call is answered at once."""

    def decided(self) -> list[Reply | Failed]:
        """Empty: these models make no decisions."""
        return []

    def ping(self) -> None:
        """Answer, which shows that the process is alive."""

    def metrics(self) -> dict[str, float]:
        """Empty: there are no steps and no cache."""
        return {}

    def tokenize(self, text: str) -> list[int]:
        return self.encoded(text, special_tokens=False, names=False).ids

    def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        given = self._tokenizer.encode(
            [text], add_special_tokens=special_tokens, max_length=NO_LIMIT
        )
        ids = list(map(int, given.input_ids.data[0]))
        return Tokens(ids, self._token_texts(ids) if names else None)

    def add_adapter(self, *_: str) -> None:
        raise self._unsupported("LoRA adapters")

    remove_adapter = add_adapter

    def reset_prefix_cache(self) -> None:
        """Refuse, having no such cache."""
        raise self._unsupported("reset_prefix_cache")

    # For the kinds
    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the openvino engine does not support {what} with {self.kind}")

    def _check_lengths(self, lengths: Sequence[int], param: str) -> None:
        """Refuse long texts, which the pipelines cut in silence, and empty ones, which kill
        them.
        """
        for index, length in enumerate(lengths):
            if length > self._context_length:
                raise context_overflow(
                    self._context_length, length, what=f"{param}[{index}]", param=param
                )
            if not length:
                raise RequestError(f"{param}[{index}] is empty", param=param)


_MOST_A_ROUND = 256
_MOST_NUMBERS = 1 << 22
"""The most numbers in an answer with vectors of tokens; an answer for one text may have more."""


class Embedded:
    """A call of `embed`, with its vectors so far. `vectors` is None when the call has ended."""

    def __init__(self, call: Call, inputs: list[Any], lengths: list[int]) -> None:
        self.id = call.id
        self.dimensions: int | None = call.args[1]
        self.kind: str = call.args[4]
        self.packed: bool = call.args[5]
        self.inputs = inputs
        self.lengths = lengths
        self.vectors: list[Any] | None = [None] * len(inputs)
        self.left = len(inputs)
        self._begun = 0

    @property
    def more(self) -> bool:
        """Whether texts are left that no round has taken."""
        return self._begun < len(self.inputs)

    def next(self) -> range:
        """The indexes of the texts that the next round takes."""
        begun = self._begun
        self._begun = min(begun + _MOST_A_ROUND, len(self.inputs))
        return range(begun, self._begun)


_Group = list[tuple[Embedded, int]]
"""The texts of a run of the model: for each, its call and its index there."""


class Embedding(Task):
    """A model that embeds texts as vectors.

    Calls that wait together make a round: up to 256 texts of each, sorted by length, in runs of the
    model of up to 1,024 tokens. A call is answered after the run that has its last text, while the
    next run goes on: so calls are answered, read and tokenized beside the model.
    """

    kind = MODEL_KINDS["embed"]

    pooling: Pooling = "mean"
    """The default, if the model's files state none."""

    def _start(self) -> None:
        self._waiting: list[Embedded] = []
        self._round: deque[_Group] = deque()
        self._running: tuple[_Group, Callable[[], list[Any]]] | None = None
        path, options = Path(self._path), self._options
        pooling = options.embedding_pooling or pooling_of(path, self.pooling)
        self._layers = text_layers(path)
        self._normalizes = options.embedding_normalize and not self._layers
        """Whether the pooled vectors are normalized at once: layers that follow would come
        first.
        """
        self._instructions = instructions_of(
            path, options.query_instruction, options.document_instruction, pooling
        )
        self._lowers = lowers_texts(path)
        self._load(pooling)

    def _load(self, pooling: Pooling) -> None:
        """Load the model, and set `_width` and `vectors`."""
        self._model = TokenModel(Path(self._path), self._options.device, self._properties)
        self.vectors = self._model.kinds
        with contextlib.suppress(Exception):  # not every detokenizer has a list of its tokens
            self.vocabulary = self._ids()
        # Each of these also shows at the start whether the model works.
        if self.vectors == ("sparse",):
            self._batch_tokens = min(self._batch_tokens, self._model.tokens_at_once)
            self._model.states(self._read(["a"]))
            self._width = self._model.width
        else:
            self._model.pool(pooling, normalize=self._normalizes)
            self._model.begin(self._read(["a"]))
            self._width = self._finished(self._model.pooled()).shape[1]

    @property
    def busy(self) -> bool:
        return bool(self._round or self._waiting or self._running)

    def abort(self, request_id: int) -> None:
        running = [self._running[0]] if self._running is not None else []
        under_way = (one for group in (*running, *self._round) for one, _ in group)
        for embedded in [*self._waiting, *under_way]:
            if embedded.id == request_id:
                embedded.vectors = None

    def begin_embeddings(self, calls: Sequence[Call]) -> list[Failed]:
        """Take calls of `embed(inputs, dimensions, input_type, truncate, vectors, packed)`. Returns
        those that fail.

        With `dimensions` below the model's width, vectors are cut and brought to length 1 again:
        what models trained for it (Matryoshka) expect. Without normalization
        (`embedding_normalize`) they are only cut.
        """
        failed: list[Failed] = []
        sound: list[tuple[Call, list[Any]]] = []
        for call in calls:
            try:
                sound.append((call, self._instructed(call.args[0], call.args[2])))
            except Exception as error:
                failed.append(failure_of(call.id, error))
        try:
            read = iter(
                self._read([one for _, inputs in sound for one in inputs if isinstance(one, str)])
            )
        except Exception as error:
            return [Failed(call.id, EngineError.kind, reason_of(error)) for call in calls]
        for call, inputs in sound:
            ids = [next(read) if isinstance(one, str) else one for one in inputs]
            try:
                if call.args[3]:
                    ids = [self._cut(*both) for both in zip(inputs, ids, strict=True)]
                lengths = list(map(len, ids))
                self._check(inputs, call, lengths)
                self._waiting.append(Embedded(call, ids, lengths))
            except Exception as error:
                failed.append(failure_of(call.id, error))
        return failed

    def step(self) -> tuple[list[Any], list[Reply | Failed]]:
        """Begin a run of the model, and answer the calls that the one before has completed."""
        group, vectors = _Group(), list[Any]()
        if self._running is not None:
            (group, ended), self._running = self._running, None
            try:
                vectors = ended()
            except Exception as error:
                vectors = [error] * len(group)
        if following := self._next_group():
            try:
                self._running = following, self._begun(following)
            except Exception as error:
                self._running = following, partial(list, [error] * len(following))
        return [], self._answers(group, vectors)

    def _next_group(self) -> _Group:
        """The texts of the next run; none if there are none."""
        if not self._round:
            texts = [(call, place) for call in self._waiting for place in call.next()]
            self._waiting = [
                call for call in self._waiting if call.vectors is not None and call.more
            ]
            lengths = [call.lengths[place] for call, place in texts]
            for indexes in groups(lengths, self._batch_tokens):
                self._round.append([texts[index] for index in indexes])
        while self._round:
            group = self._round.popleft()
            if left := [(call, at) for call, at in group if call.vectors is not None]:
                return left
        return []

    def _answers(self, group: _Group, vectors: list[Any]) -> list[Reply | Failed]:
        answers: list[Reply | Failed] = []
        for (call, at), vector in zip(group, vectors, strict=True):
            if call.vectors is None:  # it failed a moment ago
                continue
            call.vectors[at] = vector
            call.left -= 1
            if isinstance(vector, Exception):
                answers.append(failure_of(call.id, vector))
                call.vectors = None
            elif not call.left:
                answers.append(Reply(call.id, self._answer(call.vectors, call)))
                call.vectors = None
        return answers

    def _instructed(self, inputs: list[Any], input_type: str | None) -> list[Any]:
        """The inputs, each text behind the instruction of its type."""
        instruction = instruction_for(self._instructions, input_type)
        if not instruction and not self._lowers:
            return inputs
        if instruction and input_type is not None and any(isinstance(one, list) for one in inputs):
            raise RequestError(
                "an instruction goes before texts, not before token ids", param="input_type"
            )

        def read(text: str) -> str:
            return (instruction + text).lower() if self._lowers else instruction + text

        return [read(one) if isinstance(one, str) and one else one for one in inputs]

    def _check(self, inputs: list[Any], call: Call, lengths: list[int]) -> None:
        dimensions, kind = call.args[1], call.args[4]
        if not inputs:
            raise RequestError("there is nothing to embed", param="input")
        if dimensions is not None and kind == "sparse":
            raise RequestError("sparse vectors have no dimensions to choose", param="dimensions")
        width = (kind == "multi" and self._model.vector_width) or self._width
        if dimensions is not None and not 1 <= dimensions <= width:
            raise RequestError(f"this model's vectors have {width} dimensions", param="dimensions")
        self._check_lengths(lengths, "input")
        numbers = sum(lengths) * (dimensions or width)
        if kind == "multi" and len(inputs) > 1 and numbers > _MOST_NUMBERS:
            raise RequestError(
                f"the vectors of {sum(lengths):,} tokens have {numbers:,} numbers: at most"
                f" {_MOST_NUMBERS:,} go into an answer to several texts",
                param="input",
            )
        for ids in inputs:
            if isinstance(ids, list):
                self.vocabulary = self.vocabulary or self._ids()
                check_id_range(ids, self.vocabulary, "input")

    def _ids(self) -> int:
        """How many token ids there are."""
        return int(1 + max(self._tokenizer.get_vocab().values()))

    def _begun(self, group: _Group) -> Callable[[], list[Any]]:
        """Begin a run. What this returns waits for its end, and gives what the model makes of each
        input: numbers, for a "multi" call a matrix; or an error.
        """
        dense = [call.inputs[at] for call, at in group if call.kind == "dense"]
        if dense:
            self._model.begin(dense)
        return partial(self._vectors, group, bool(dense))

    def _vectors(self, group: _Group, dense: bool) -> list[Any]:
        found = iter(self._finished(self._model.pooled()) if dense else [])
        others = [call.inputs[at] for call, at in group if call.kind != "dense"]
        states = iter(self._model.states(others))
        vectors: list[Any] = []
        for call, _ in group:
            if call.kind == "dense":
                vectors.append(next(found))
            elif call.kind == "multi":
                normalize = self._options.embedding_normalize
                vectors.append(self._model.vectors(next(states), normalize, call.dimensions))
            else:
                vectors.append(SparseVector(*sparse(next(states))))
        return vectors

    def _read(self, texts: Sequence[str]) -> list[Any]:
        """The token ids of each text, special ones included."""
        read: list[Any] = [None] * len(texts)
        for group in groups(list(map(len, texts)), BATCH_CHARACTERS):
            ids = self._encoded([texts[index] for index in group], NO_LIMIT)
            for index, one in zip(group, ids, strict=True):
                read[index] = one
        return read

    def _cut(self, given: str | list[int], ids: Any) -> Any:
        """The ids of what was given, as many as the model has positions for: of a text, the special
        ones at its end are kept.
        """
        longest = self._context_length
        if len(ids) > longest and isinstance(given, str):
            return self._encoded([given], longest)[0]
        return ids[:longest]

    def _encoded(self, texts: list[str], most: int) -> list[Any]:
        encoded = self._tokenizer.encode(texts, max_length=most, truncation=True)
        ids, mask = encoded.input_ids.data, encoded.attention_mask.data.astype(bool)
        if len(ids) < len(texts):  # several empty ones have one row
            return [one for text in texts for one in self._encoded([text], most)]
        return [row[kept] for row, kept in zip(ids, mask, strict=True)]

    def _finished(self, pooled: Any) -> Any:
        """The vectors of texts, of pooled ones, which nothing has normalized if layers follow."""
        if not self._layers:
            return pooled
        made = put_through(self._layers, pooled)
        return shortened(made, self._options.embedding_normalize, None)

    def _answer(self, vectors: list[Any], call: Embedded) -> Embeddings:
        usage = Usage(sum(call.lengths))
        if call.kind == "sparse":
            return Embeddings([], usage, sparse=vectors)
        if call.kind == "multi":
            return Embeddings([], usage, multi=[matrix.tolist() for matrix in vectors])
        made = np.asarray(vectors, np.float32)
        if call.dimensions is not None and call.dimensions != self._width:
            made = shortened(made, self._options.embedding_normalize, call.dimensions)
        if call.packed:
            return Embeddings([], usage, packed=made.astype("<f4", copy=False).tobytes())
        return Embeddings(made.tolist(), usage)


def _kind_of(load: Load) -> type[Task]:
    """The class of a model. Those in modules of their own are built on this one."""
    task = load.task
    if task == "embed" and sees(Path(load.path)):
        from penstock.engines.openvino.image_vectors import ImageEmbedding

        return ImageEmbedding
    if task == "transcribe":
        from penstock.engines.openvino.speech import Hearing

        return Hearing
    if task == "speak":
        from penstock.engines.openvino.speech import Speaking

        return Speaking
    if task == "score":
        from penstock.engines.openvino.rerank import Rerank

        return Rerank
    return Embedding


def groups(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indexes in groups of similar size, which saves padding; each within the budget, or single."""
    group: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if group and sizes[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
