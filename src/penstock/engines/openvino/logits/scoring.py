"""Log probabilities for requests that want more of them than GenAI's pipeline gives: those of the
prompt, or of the most likely tokens.

Such a request is read by the model itself beside the pipeline: its prompt before it is queued, its
answer as it grows. A turn reads a bounded number of tokens, so no long prompt stalls the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.engines.openvino.logits.model import LogitModel, Reading, TokenScore
from penstock.engines.openvino.logits.second_copy import IDLE_SECONDS, is_biased, needs_scores
from penstock.engines.openvino.model.files import LANGUAGE_MODEL, sees
from penstock.engines.openvino.model.gguf_ir import saved_ir
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.sampling import check_id_range
from penstock.errors import UnsupportedError
from penstock.types import Sampling, TokenLogprob

if TYPE_CHECKING:
    from penstock.engines.openvino.lanes.lane import Lane
    from penstock.engines.openvino.lanes.request import Request

_LOADING_WAIT_SECONDS = 0.002


class Logits:
    """The model that gives log probabilities: loaded when it is first needed, and given back when
    nobody used it for `IDLE_SECONDS`. It loads beside the requests that do not need it. `exact` and
    `grows` are those of `LogitModel`.
    """

    def __init__(
        self, path: str, options: OpenVINOOptions, exact: bool = True, grows: bool = True
    ) -> None:
        self._path = Path(path)
        self._options = options
        self._exact, self._grows = exact, grows
        self._lock = threading.Lock()
        self._loading: Future[LogitModel] | None = None
        self._timer: threading.Timer | None = None

    def model(self) -> LogitModel | None:
        """The model; None while it loads. Raises what made the loading fail. `rest` follows once
        nobody reads any more.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._loading is None:
                loader = ThreadPoolExecutor(1, "logits")
                self._loading = loader.submit(self._load)
                loader.shutdown(wait=False)
            loading = self._loading
        try:
            return loading.result(_LOADING_WAIT_SECONDS)
        except TimeoutError:
            return None
        except Exception:
            with self._lock:
                self._loading = None
            raise

    def _load(self) -> LogitModel:
        if self._options.device != "CPU":
            raise UnsupportedError(
                "log probabilities of several tokens, and logit_bias, are for the device CPU, not"
                f" {self._options.device}"
            )
        directory = saved_ir(self._path) if self._path.suffix == ".gguf" else self._path
        name = LANGUAGE_MODEL if sees(directory) else "openvino_model.xml"
        return LogitModel(str(directory / name), self._options, self._exact, self._grows)

    def rest(self) -> None:
        """No request is read now: release the model after `IDLE_SECONDS` without one."""
        with self._lock:
            if self._timer is None and self._loading is not None:
                self._timer = threading.Timer(IDLE_SECONDS, self.release)
                self._timer.daemon = True
                self._timer.start()

    def release(self) -> None:
        """Free the model; the next reader loads it again."""
        with self._lock:
            self._loading, self._timer = None, None


class Scored:
    """What is known of one request's tokens. `prompt` has the scores of the prompt's tokens but the
    first; `answer` those of the answer's so far.
    """

    def __init__(self, lane: Lane, request: Request) -> None:
        self.lane = lane
        self.request = request
        self.ids = list(request.prompt)
        self.prompt: list[TokenScore] = []
        self.answer: list[TokenScore] = []
        self.reading: Reading | None = None
        self.read = 0

    @property
    def prompt_size(self) -> int:
        return self.request.prompt_tokens

    @property
    def size(self) -> int:
        """How many tokens there are so far."""
        return self.prompt_size + len(self.request.ids)

    @property
    def known(self) -> int:
        """How many tokens have been scored, or need not be: they may be read again."""
        if self.answer:
            return self.prompt_size + len(self.answer)
        return len(self.prompt) + 1 if self.prompt else 0

    @property
    def reads_answer(self) -> bool:
        """Whether the answer is read here too. A biased one is read in its lane, and a second KV
        cache kept meanwhile would leave that no room.
        """
        sampling = self.request.sampling
        return sampling.logprobs is not None and not is_biased(sampling)

    @property
    def whole(self) -> bool:
        """Whether all tokens that are there so far were read."""
        return self.read == self.size

    def unread(self, most: int) -> list[int]:
        """The next tokens to read: of the prompt, or of the answer."""
        start = self.read
        if start < self.known:
            most = min(most, self.known - start)
        if start < self.prompt_size:
            return self.ids[start : start + most]
        return self.request.ids[start - self.prompt_size :][:most]

    def give_up(self) -> None:
        """Give up the KV cache: what was read is read again, and keeps its scores."""
        self.reading, self.read = None, 0

    def again(self) -> None:
        """Forget what was read: the engine generates this answer from its start again."""
        self.answer.clear()
        self.give_up()


class Scoring:
    """The requests that are read for their log probabilities."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self._scored: dict[Request, Scored] = {}
        self._unread: deque[Scored] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._unread)

    def begin(self, lane: Lane, request: Request) -> None:
        """Read a request's prompt; a turn returns it when that is done."""
        scored = self._scored[request] = Scored(lane, request)
        self._unread.append(scored)

    def of(self, request: Request) -> Scored | None:
        """The scores of a request; None if it needs none."""
        return self._scored.get(request)

    def note(self, request: Request) -> bool:
        """The request has new tokens. Returns whether they must be read first: a turn returns it
        then.
        """
        scored = self._scored.get(request)
        if scored is None or not scored.reads_answer:
            return False
        if scored not in self._unread:
            self._unread.append(scored)
        return True

    def restarted(self, request: Request) -> None:
        """The request waits for its lane again, with its tokens so far or without."""
        scored = self._scored.get(request)
        if scored is None:
            return
        if scored in self._unread:  # it is noted again with its next token
            self._unread.remove(scored)
        if len(request.ids) < len(scored.answer):
            scored.again()

    def forget(self, request: Request) -> None:
        """The request ended, or was given up."""
        scored = self._scored.pop(request, None)
        if scored is not None and scored in self._unread:
            self._unread.remove(scored)
        if not self._scored:
            self._logits.rest()

    def turn(self, failed: Callable[[Request, Exception], None]) -> list[Scored]:
        """Read a bounded number of tokens. Returns the requests that are read whole; calls `failed`
        for those that cannot be read. Requests without room for their KV caches wait.
        """
        done: list[Scored] = []
        budget: int | None = None
        is_full = False
        for scored in list(self._unread):
            if budget is not None and budget <= 0:
                break
            if is_full and scored.reading is None:
                continue
            try:
                model = self._logits.model()
                if model is None:
                    return done
                budget = model.chunk if budget is None else budget
                if scored.reading is None:
                    scored.reading = model.begin_if_fits(scored.size)
                    is_full = scored.reading is None
                while scored.reading is not None and budget > 0 and not scored.whole:
                    budget -= self._read(scored, scored.reading, model, budget)
                    model.make_room(self._scored.values())
            except Exception as error:
                self.forget(scored.request)
                failed(scored.request, error)
                continue
            if scored.whole:
                if not scored.reads_answer:
                    scored.reading = None
                self._unread.remove(scored)
                done.append(scored)
        return done

    def _read(self, scored: Scored, reading: Reading, model: LogitModel, most: int) -> int:
        """Read at most this many tokens. Returns their cost, in tokens without a score."""
        sampling, start = scored.request.sampling, scored.read
        in_prompt = start < scored.prompt_size
        top = sampling.prompt_logprobs if in_prompt else sampling.logprobs
        silent = top is None or start < scored.known
        ids = scored.unread(most if silent else min(most, model.asked))
        scores = reading.add(ids, top or 0, silent)
        if in_prompt:
            scored.prompt += scores
        else:
            scored.answer += scores
        scored.read += len(ids)
        return len(ids) if silent else len(ids) * max(1, model.chunk // model.asked)


def check_together(request: Request, vocabulary: int) -> None:
    """Raise `RequestError` for ids that are none, `UnsupportedError` for what does not go together
    here.
    """
    sampling = request.sampling
    biased, scored = is_biased(sampling), needs_scores(sampling)
    if not biased and not scored:
        return
    param = _asked(sampling)
    what = (
        "logit_bias, allowed_token_ids and bad_words"
        if biased
        else "log probabilities of prompts and of several tokens"
    )
    if request.adapter is not None:
        raise UnsupportedError(
            f"{what} are of the bare model; this request has an adapter", param=param
        )
    if biased and sampling.structured is not None:
        raise UnsupportedError(
            f"{what} do not go together with a constraint on the answer", param=param
        )
    check_id_range([token for token, _ in sampling.logit_bias], vocabulary, "logit_bias")
    check_id_range(sampling.allowed_token_ids, vocabulary, "allowed_token_ids")


def _asked(sampling: Sampling) -> str:
    """The first parameter of a request that the pipeline alone does not honour."""
    names = ("logit_bias", "allowed_token_ids", "bad_words")
    given = (name for name in names if getattr(sampling, name))
    return next(given, "prompt_logprobs" if sampling.logprobs is None else "logprobs")


def answer_logprobs(
    request: Request, start: int, scored: Scored | None, tokenizer: Tokenizer
) -> tuple[TokenLogprob, ...] | None:
    """The log probabilities of the answer's tokens from `start` on; None if they are not wanted."""
    top = request.sampling.logprobs
    if top is None:
        return None
    if is_biased(request.sampling):
        return _named(request.logprobs[start:], tokenizer)
    if scored is not None:
        return _named(scored.answer[start:], tokenizer)
    ids = request.ids[start:]
    names = tokenizer.token_texts(ids)
    return tuple(
        TokenLogprob(
            name,
            value,
            ((name, value),) if top else (),
            token,
            tokenizer.raw.get(token),
            top_ids=(token,) if top else (),
            top_raw=(tokenizer.raw.get(token, b""),) if top else (),
        )
        for name, value, token in zip(names, request.logprobs[start:], ids, strict=True)
    )


def prompt_logprobs(scored: Scored | None, tokenizer: Tokenizer) -> tuple[TokenLogprob, ...] | None:
    """The log probabilities of the prompt's tokens; None if they are not wanted."""
    if scored is None or scored.request.sampling.prompt_logprobs is None:
        return None
    first = scored.ids[0]
    (name,) = tokenizer.token_texts([first])
    begin = TokenLogprob(name, None, id=first, raw=tokenizer.raw.get(first))
    return (begin, *_named(scored.prompt, tokenizer))


def _named(scores: Sequence[TokenScore], tokenizer: Tokenizer) -> tuple[TokenLogprob, ...]:
    """The scores with the texts of their tokens, from one call of the detokenizer."""
    ids = {token for score in scores for token in (score.token, *(i for i, _ in score.top))}
    names = dict(zip(ids, tokenizer.token_texts(ids), strict=True))
    return tuple(
        TokenLogprob(
            names[score.token],
            score.logprob,
            tuple((names[token], value) for token, value in score.top),
            score.token,
            tokenizer.raw.get(score.token),
            score.rank,
            tuple(token for token, _ in score.top),
            tuple(tokenizer.raw.get(token, b"") for token, _ in score.top),
        )
        for score in scores
    )
