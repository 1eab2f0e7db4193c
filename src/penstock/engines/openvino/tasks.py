"""Models that do not generate text, inside the worker process: those that embed texts, and what is
common to all.

They have the face of `Generation` towards the worker. `Embedding` and `Rerank` have something to
step: calls of speech are answered at once.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
"""They are answered one after the other: enough of them that there is always a next one."""
_BATCH_TOKENS = 1024
"""Tokens of one pipeline call, padding included. MiniLM takes twice the processor time for a text
in calls of 8,192 tokens, which leave the processor's caches.
"""
_BATCH_CHARACTERS = 1 << 20
NO_LIMIT = 2**30
"""Tokenizers cut long texts without a limit. A power of two survives their 32-bit float."""
_POOLING = {
    "mean": genai.TextEmbeddingPipeline.PoolingType.MEAN,
    "cls": genai.TextEmbeddingPipeline.PoolingType.CLS,
    "last_token": genai.TextEmbeddingPipeline.PoolingType.LAST_TOKEN,
}


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
        """Of one pipeline call. With 0, each text has a call of its own."""
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
        """Nothing to give up: the call is answered at once."""

    def decided(self) -> list[Reply | Failed]:
        """Nothing: no decision has begun."""
        return []

    def ping(self) -> None:
        """Answer, which shows that the process is alive."""

    def metrics(self) -> dict[str, float]:
        """Nothing: there are no steps and no cache."""
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
        """The pipelines cut long texts in silence, and die of empty ones."""
        for index, length in enumerate(lengths):
            if length > self._context_length:
                raise context_overflow(
                    self._context_length, length, what=f"{param}[{index}]", param=param
                )
            if not length:
                raise RequestError(f"{param}[{index}] is empty", param=param)


_MOST_A_ROUND = 256
_MOST_NUMBERS = 1 << 22
"""Of the vectors of tokens in one answer, but for that to a single text."""


class Embedded:
    """A call of `embed`, with the vectors that are there. `vectors` is None once it has ended."""

    def __init__(self, call: Call, inputs: list[Any], lengths: list[int]) -> None:
        self.id = call.id
        self.dimensions: int | None = call.args[1]
        self.kind: str = call.args[4]
        self.inputs = inputs
        self.lengths = lengths
        self.vectors: list[Any] | None = [None] * len(inputs)
        self.left = len(inputs)
        self._begun = 0

    @property
    def more(self) -> bool:
        """Whether texts are left that had no round."""
        return self._begun < len(self.inputs)

    def next(self) -> range:
        """The places of the texts that the next round takes."""
        begun = self._begun
        self._begun = min(begun + _MOST_A_ROUND, len(self.inputs))
        return range(begun, self._begun)


class Embedding(Task):
    """A model that embeds texts as vectors.

    Calls that wait together make a round: up to 256 texts of each, sorted by length, in runs of the
    model of up to 1,024 tokens. A call is answered after the run that has its last text.
    """

    kind = MODEL_KINDS["embed"]

    pooling: Pooling = "mean"
    """Where the model's files state none."""
    _pipeline: Any = None
    """GenAI's, of texts; None where the model is run here."""

    def _start(self) -> None:
        self._waiting: list[Embedded] = []
        self._round: deque[list[tuple[Embedded, int]]] = deque()
        path, options = Path(self._path), self._options
        pooling = options.embedding_pooling or pooling_of(path, self.pooling)
        config = genai.TextEmbeddingPipeline.Config()
        config.pooling_type = _POOLING[pooling]
        self._layers = text_layers(path)
        config.normalize = self._options.embedding_normalize and not self._layers
        config.max_length = self._context_length
        self._pooling = config.pooling_type
        self._instructions = instructions_of(
            path, options.query_instruction, options.document_instruction, pooling
        )
        self._lowers = lowers_texts(path)
        self._load(config)

    def _load(self, config: Any) -> None:
        """Make the pipeline, and set `_width` and `vectors`."""
        device = self._options.device
        self._model = TokenModel(Path(self._path), device, self._properties)
        self.vectors = self._model.kinds
        with contextlib.suppress(Exception):  # not every detokenizer has a list of its tokens
            self.vocabulary = self._ids()
        # Each also shows at the start whether the model works.
        if self.vectors == ("sparse",):
            self._batch_tokens = min(self._batch_tokens, self._model.tokens_at_once)
            self._model.states(self._ids_of(["a"]))
            self._width = self._model.width
        elif self._model.reads_positions or self._pads_at_the_left():
            self._width = len(self._pooled(self._model.states(self._ids_of(["a"]))[0]))
        else:
            self._pipeline = genai.TextEmbeddingPipeline(
                self._path, device, config, **self._properties
            )
            self._width = len(self._finished([self._pipeline.embed_query("a")])[0])

    def _pads_at_the_left(self) -> bool:
        """The pipeline looks for first and last tokens as if texts were padded at the right."""
        short, _ = self._tokenizer.encode(["a", "a a a a"]).attention_mask.data
        return not short[0]

    @property
    def busy(self) -> bool:
        return bool(self._round or self._waiting)

    def abort(self, request_id: int) -> None:
        for embedded in [*self._waiting, *(one for group in self._round for one, _ in group)]:
            if embedded.id == request_id:
                embedded.vectors = None

    def begin_embeddings(self, calls: Sequence[Call]) -> list[Failed]:
        """Take calls of `embed(inputs, dimensions, input_type, truncate, vectors)`. Returns those
        that fail.

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
            given = [one for _, inputs in sound for one in inputs if isinstance(one, str)]
            counts = iter(token_counts(self._tokenizer, given))
        except Exception as error:
            return [Failed(call.id, EngineError.kind, reason_of(error)) for call in calls]
        for call, inputs in sound:
            lengths = [next(counts) if isinstance(one, str) else len(one) for one in inputs]
            if call.args[3]:  # texts are cut by the pipeline
                longest = self._context_length
                inputs = [one if isinstance(one, str) else one[:longest] for one in inputs]
                lengths = [min(length, longest) for length in lengths]
            try:
                self._check(inputs, call, lengths)
                self._waiting.append(Embedded(call, inputs, lengths))
            except Exception as error:
                failed.append(failure_of(call.id, error))
        return failed

    def step(self) -> tuple[list[Any], list[Reply | Failed]]:
        """Run the model once, and answer the calls that are complete."""
        if not self._round:
            texts = [(call, place) for call in self._waiting for place in call.next()]
            self._waiting = [
                call for call in self._waiting if call.vectors is not None and call.more
            ]
            lengths = [call.lengths[place] for call, place in texts]
            for indexes in groups(lengths, self._batch_tokens):
                self._round.append([texts[index] for index in indexes])
        group = [(call, at) for call, at in self._round.popleft() if call.vectors is not None]
        answers: list[Reply | Failed] = []
        try:
            vectors = self._vectors(group)
        except Exception as error:
            vectors = [error] * len(group)
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
        return [], answers

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

    def _vectors(self, group: list[tuple[Embedded, int]]) -> list[Any]:
        """What the model makes of each input: numbers, for a "multi" call a matrix; or an error."""
        given = [(call.kind, call.inputs[at]) for call, at in group]
        takes_texts = self._pipeline is not None
        piped = [takes_texts and kind == "dense" and isinstance(one, str) for kind, one in given]
        texts = [one for (_, one), is_piped in zip(given, piped, strict=True) if is_piped]
        found = iter(self._finished(self._pipeline.embed_documents(texts)) if texts else [])
        others = [one for (_, one), is_piped in zip(given, piped, strict=True) if not is_piped]
        states = iter(self._model.states(self._ids_of(others)))
        vectors: list[Any] = []
        for (call, _), is_piped in zip(group, piped, strict=True):
            if is_piped:
                vectors.append(next(found))
            elif call.kind == "dense":
                vectors.append(self._pooled(next(states)))
            elif call.kind == "multi":
                normalize = self._options.embedding_normalize
                vectors.append(self._model.vectors(next(states), normalize, call.dimensions))
            else:
                vectors.append(SparseVector(*sparse(next(states))))
        return vectors

    def _ids_of(self, inputs: Sequence[str | list[int]]) -> list[list[int]]:
        """The token ids of each input, cut at the model's limit, special ones included."""
        texts = [one for one in inputs if isinstance(one, str)]
        read: Iterator[list[int]] = iter(())
        if texts:
            longest = self._context_length
            encoded = self._tokenizer.encode(texts, max_length=longest, truncation=True)
            ids, mask = encoded.input_ids.data, encoded.attention_mask.data
            read = (row[kept].tolist() for row, kept in zip(ids, mask.astype(bool), strict=True))
        return [next(read) if isinstance(one, str) else one for one in inputs]

    def _pooled(self, states: Any) -> list[float]:
        """The vector of a text from those of its tokens, as the pipeline pools them."""
        kinds = genai.TextEmbeddingPipeline.PoolingType
        vector = (
            states[0]
            if self._pooling == kinds.CLS
            else states[-1]
            if self._pooling == kinds.LAST_TOKEN
            else states.mean(axis=0)
        )
        return self._put_through(vector[None])[0]

    def _finished(self, pooled: Any) -> Any:
        """The vectors of texts, of those that the pipeline gives."""
        return self._put_through(np.asarray(pooled, np.float32)) if self._layers else pooled

    def _put_through(self, pooled: Any) -> list[list[float]]:
        """The vectors of texts, of pooled ones that nothing has normalized."""
        made = put_through(self._layers, pooled)
        vectors: list[list[float]] = shortened(
            made, self._options.embedding_normalize, None
        ).tolist()
        return vectors

    def _answer(self, vectors: list[Any], call: Embedded) -> Embeddings:
        usage = Usage(sum(call.lengths))
        if call.kind == "sparse":
            return Embeddings([], usage, sparse=vectors)
        if call.kind == "multi":
            return Embeddings([], usage, multi=[matrix.tolist() for matrix in vectors])
        if call.dimensions is not None and call.dimensions != self._width:
            normalize = self._options.embedding_normalize
            vectors = shortened(np.asarray(vectors), normalize, call.dimensions).tolist()
        return Embeddings(vectors, usage)


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


def token_counts(tokenizer: Any, texts: Sequence[str], query: str | None = None) -> list[int]:
    """Tokens of each text, special ones included; of each pair if there is a query."""
    counts = [0] * len(texts)
    for group in groups([len(text) + len(query or "") for text in texts], _BATCH_CHARACTERS):
        chosen = [texts[i] for i in group]
        prompts = (chosen,) if query is None else ([query], chosen)
        mask = tokenizer.encode(*prompts, max_length=NO_LIMIT).attention_mask.data
        for index, count in zip(group, mask.sum(axis=1).tolist(), strict=True):
            counts[index] = count
    return counts


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
