"""The deltas of an answer: its new tokens as text, with stop strings, log probabilities, usage."""

from __future__ import annotations

from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Request
from penstock.engines.openvino.logits.scoring import Scoring, answer_logprobs, prompt_logprobs
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.sampling import shown_prompt
from penstock.types import Delta, Usage


class Deltas:
    """Makes the deltas of requests. `stop_ids` end any answer: the model's own."""

    def __init__(self, tokenizer: Tokenizer, scoring: Scoring, stop_ids: set[int]) -> None:
        self._tokenizer = tokenizer
        self._scoring = scoring
        self._stop_ids = stop_ids

    def of(self, lane: Lane, requests: list[Request]) -> list[tuple[int, Delta]]:
        """The new text of all requests, from one call of the detokenizer. A search that has ended
        gives one delta a beam.
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
