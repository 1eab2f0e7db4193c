"""Models that score documents by their relevance to a query, inside the worker process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import openvino_genai as genai

from penstock.engines.openvino.model.files import MODEL_KINDS, lacks_token_types
from penstock.engines.openvino.options import failure_of
from penstock.engines.openvino.tasks import BATCH_CHARACTERS, NO_LIMIT, Task, groups
from penstock.engines.process import Call, Failed, Reply
from penstock.errors import EngineStartError, RequestError
from penstock.types import Scores, Usage


class Rerank(Task):
    """The relevance of documents to a query."""

    kind = MODEL_KINDS["score"]

    def _start(self) -> None:
        if lacks_token_types(Path(self._path)):
            raise EngineStartError(
                f"the tokenizer in '{self._path}' writes no token_type_ids, which this rerank model"
                " reads: put token_type_ids into model_input_names of tokenizer_config.json and"
                " convert it again"
            )
        self._running: deque[tuple[Call, Generator[None, None, Scores]]] = deque()
        self._pairs = genai.Tokenizer(self._path, add_second_input=True)
        config = genai.TextRerankPipeline.Config()
        config.top_n = NO_LIMIT
        config.max_length = self._context_length
        self._pipeline = genai.TextRerankPipeline(
            self._path, self._options.device, config, **self._properties
        )
        self._pipeline.rerank("a", ["b"])  # shows at the start whether the model works

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def abort(self, request_id: int) -> None:
        self._running = deque(one for one in self._running if one[0].id != request_id)

    def begin_rerank(self, call: Call) -> None:
        """Take a call of `rerank(query, documents)`. Calls take turns, a run of the model each."""
        self._running.append((call, self._scores(*call.args)))

    def step(self) -> tuple[list[Any], list[Reply | Failed]]:
        """Run the model once, and answer the call if it is complete."""
        call, scores = self._running.popleft()
        try:
            next(scores)
        except StopIteration as end:
            return [], [Reply(call.id, end.value)]
        except Exception as error:
            return [], [failure_of(call.id, error)]
        self._running.append((call, scores))
        return [], []

    def _scores(self, query: str, documents: list[str]) -> Generator[None, None, Scores]:
        """Scores from 0 to 1, in the documents' order."""
        if not documents:
            raise RequestError("there are no documents to score", param="documents")
        lengths = _token_counts(self._pairs, query, documents)
        self._check_lengths(lengths, "documents")
        scores = [0.0] * len(documents)
        for number, group in enumerate(groups(lengths, self._batch_tokens)):
            if number:
                yield
            for place, score in self._pipeline.rerank(query, [documents[i] for i in group]):
                scores[group[place]] = score
        return Scores(scores, Usage(sum(lengths)))


def _token_counts(tokenizer: Any, query: str, documents: Sequence[str]) -> list[int]:
    """Tokens of each pair of the query and a document, special ones included."""
    counts = [0] * len(documents)
    for group in groups([len(query) + len(one) for one in documents], BATCH_CHARACTERS):
        chosen = [documents[index] for index in group]
        mask = tokenizer.encode([query], chosen, max_length=NO_LIMIT).attention_mask.data
        for index, count in zip(group, mask.sum(axis=1).tolist(), strict=True):
            counts[index] = count
    return counts
