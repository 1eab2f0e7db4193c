"""A request in a lane, the text of its tokens so far, and the deltas made of them: with stop
strings, log probabilities and usage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.engines.openvino.lanes.vision import Picture
from penstock.engines.openvino.logits.scoring import Scoring, answer_logprobs, prompt_logprobs
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.process import Submit
from penstock.engines.sampling import StopStrings, shown_prompt
from penstock.kv.prefix_index import BLOCK_SIZE, block_hashes
from penstock.types import Delta, FinishReason, Usage

if TYPE_CHECKING:
    from penstock.engines.openvino.lanes.lane import Lane

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Request:
    """One prompt that the lane is continuing."""

    def __init__(self, submit: Submit, prompt: list[int]) -> None:
        self.id = submit.id
        self.sampling = submit.sampling
        self.adapter = submit.adapter
        self.stream = submit.stream
        self.marks = submit.marks
        self.batch = submit.batch
        self.special_tokens = submit.special_tokens
        self.prompt = prompt
        self.text: str | None = None
        """The prompt, if the pipeline takes text and no token ids."""
        self.picture: Picture | None = None
        self.prompt_tokens = len(prompt)
        self.blocks = block_hashes(prompt)
        self.max_new_tokens = 0
        self.cached = 0
        self.handle: Any = None
        self.ids: list[int] = []
        self.logprobs: list[Any] = []
        """One for each token, if asked for: GenAI's numbers, or the `TokenScore`s of a biased
        lane.
        """
        self.reported = 0
        self.finish: FinishReason | None = None
        self.failed = False
        self.prefilled = False
        self.shown = TextStream()
        self.stop = StopStrings(submit.sampling.stop)
        self.held_text = ""
        """Text that is not sent yet, as the request does not stream."""
        self.passed = 0
        """How often other requests were taken first: their prompts were cached, or this request is
        a beam search and had no room.
        """
        self.resumed = 0
        """How many of `ids` are part of `prompt` since it was queued again."""
        self.suspect = False
        """Whether a step with this request failed, and it is unknown which request was to blame."""
        self.harmless_steps = 0
        self.admitted = False
        self.new_tokens = 0
        """Tokens of the prompt that were not cached when the request was last admitted."""
        self.evicted = 0
        """How often the request has left its slot to online requests."""
        self.granted = False
        """Whether the request keeps its slot until its next token, whatever others need."""
        self.beams = submit.beams
        self.answers: list[Request] = []
        """The beams of a beam search that has ended, the best first."""
        self.index = 0

    @property
    def slots(self) -> int:
        """How many sequences the request decodes."""
        return 1 if self.beams is None else self.beams.width

    @property
    def most_blocks(self) -> int:
        """The most blocks of the KV cache that the request takes. Beams share the prompt except its
        last block, and a beam that forks needs one more block for the copy.
        """
        prompt, new = -(-len(self.prompt) // BLOCK_SIZE), -(-self.max_new_tokens // BLOCK_SIZE)
        return prompt + self.slots * (new + 2)

    @property
    def resumable(self) -> bool:
        """Whether the request can go on from its tokens: it has no grammar, whose state would be
        lost, and the pipeline takes token ids. The beams of a beam search are not known before its
        end.
        """
        return self.sampling.structured is None and self.text is None and self.beams is None

    @property
    def resumes_exactly(self) -> bool:
        """Whether the request would go on from its tokens exactly as without the interruption: no
        state of a random generator or of penalties is lost either.
        """
        sampling = self.sampling
        return self.resumable and not (
            (sampling.temperature > 0 and sampling.seed is not None)
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or sampling.min_tokens
        )

    @property
    def watched(self) -> bool:
        """Whether its tokens are read as they come, and not only at the end."""
        return self.stream or bool(self.sampling.stop)


class TextStream:
    """The text of a growing token sequence. One call of the detokenizer serves many of these.

    A token's text can depend on its neighbours (multi-byte characters, leading spaces). So each
    piece is the difference between the text of a short window with and without the new tokens, as
    in Hugging Face's text-generation-inference. `windows` go to the detokenizer, and their two
    texts come back to `advance`.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._window_start = 0
        self._shown = 0

    def add(self, token_ids: list[int]) -> None:
        self._ids += token_ids

    def windows(self) -> tuple[list[int], list[int]]:
        """The window's tokens shown so far, and the same with the new ones."""
        return self._ids[self._window_start : self._shown], self._ids[self._window_start :]

    def advance(self, shown: str, whole: str, last: bool) -> str:
        """The new text, or "" while a character is unfinished (unless this is the `last` call)."""
        if whole.endswith(_UNFINISHED) and not last:
            return ""
        if len(whole) <= len(shown):
            return ""
        self._window_start = self._shown
        self._shown = len(self._ids)
        return whole[len(shown) :]


class Deltas:
    """Makes the deltas of requests. `stop_ids` are the model's own, which end any answer."""

    def __init__(self, tokenizer: Tokenizer, scoring: Scoring, stop_ids: set[int]) -> None:
        self._tokenizer = tokenizer
        self._scoring = scoring
        self._stop_ids = stop_ids

    def of(self, lane: Lane, requests: list[Request]) -> list[tuple[int, Delta]]:
        """The deltas with the new text of all requests, from one call of the detokenizer. A beam
        search that has ended has one delta for each beam.
        """
        if any(request.answers for request in requests):
            requests = [one for request in requests for one in request.answers or (request,)]
        windows: list[list[int]] = []
        for request in requests:
            new = request.ids[request.reported :]
            if request.finish == "stop" and new and new[-1] in self.stop_ids_of(request):
                new = new[:-1]
            request.shown.add(self._tokenizer.shown(new, request.marks))
            windows += request.shown.windows()
        texts = self._tokenizer.decode_each(
            windows, [bool(r.marks) for r in requests for _ in range(2)]
        )
        deltas: list[tuple[int, Delta]] = []
        for at, request in enumerate(requests):
            last = request.finish is not None
            text = request.stop.push(request.shown.advance(texts[2 * at], texts[2 * at + 1], last))
            if request.stop.stopped and request.finish is None:
                request.handle.stop()
                lane.cancelled = True
            if request.stop.stopped:
                request.finish = "stop"
            elif last:
                text += request.stop.flush()
            if request.stream or request.finish is not None:
                deltas.append((request.id, self._one(request, text)))
            else:
                request.reported = len(request.ids)
                request.held_text += text
        return deltas

    def _one(self, request: Request, text: str) -> Delta:
        start = request.reported if request.stream else 0
        new = request.ids[start:]
        request.reported = len(request.ids)
        if not request.stream:
            text = request.held_text + text
        scored = self._scoring.of(request)
        usage = None
        if request.finish is not None:
            cached = min(request.cached, request.prompt_tokens)
            usage = Usage(request.prompt_tokens, len(request.ids), cached)
        elif start == 0:
            usage = Usage(request.prompt_tokens, 0, request.cached)
        return Delta(
            request.index,
            text,
            tuple(new),
            answer_logprobs(request, start, scored, self._tokenizer),
            request.finish,
            usage,
            stop=request.stop.found,
            prompt_logprobs=prompt_logprobs(scored, self._tokenizer) if start == 0 else None,
            stop_token=self._stop_token(request),
            prompt_token_ids=shown_prompt(request.sampling, request.prompt[: request.prompt_tokens])
            if start == 0 and request.sampling.extra
            else None,
        )

    def _stop_token(self, request: Request) -> int | None:
        if request.finish != "stop" or request.stop.stopped or not request.ids:
            return None
        last = request.ids[-1]
        return (
            last
            if last in request.sampling.stop_token_ids and last != self._tokenizer.end
            else None
        )

    def stop_ids_of(self, request: Request) -> set[int]:
        extra = request.sampling.stop_token_ids
        return self._stop_ids.union(extra) if extra else self._stop_ids
