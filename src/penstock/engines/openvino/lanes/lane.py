"""A lane: one pipeline's queue, its running requests, and what its prefix cache holds.

GenAI puts a block into its cache under all tokens that the block will hold, as soon as the first of
them is scheduled. If a step has no room for the other tokens, they are computed in the next one. If
the request is dropped before that, the block stays in the cache, and a request with the same prefix
reads what was never computed. So no request is dropped while its prompt is computed: a request that
is given up leaves after its first token. If a fault leaves no choice, the lane is `tainted`, and
gets a new pipeline before it admits a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any

from penstock.engines.openvino.constraints.grammar_cache import CompiledGrammars
from penstock.engines.openvino.lanes.request import Request, TextStream
from penstock.engines.openvino.options import reason_of
from penstock.engines.openvino.pipeline import RUNNING, Companions
from penstock.engines.process import Failed
from penstock.engines.sampling import StopStrings
from penstock.engines.sharing import Decision
from penstock.errors import EngineError, RequestError
from penstock.kv.prefix_index import BLOCK_SIZE, PrefixIndex, block_hashes
from penstock.types import StructuredOutput

_ADMISSION_SCAN = 256
"""How many requests of the queue are searched for one that can go first."""
_PROVEN = 256
"""How many constraints that work are remembered."""
_PATIENCE = 64
"""How often other requests may pass a request in the queue."""
_MOST_ANEW = 2
"""How often a request leaves its slot to others if it must begin anew after that."""
_HARMLESS = 8
"""Steps without a fault that clear a suspect."""


class Lane:
    """One pipeline with its queue, its running requests and an index of its prefix cache."""

    def __init__(
        self,
        pipeline: Any,
        cache_blocks: int,
        max_num_seqs: int,
        prefix_caching: bool,
        company: int = 0,
        grammars: CompiledGrammars | None = None,
        sees: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.grammars = grammars
        self._company = (company, sees)
        self.companions = Companions(pipeline, *self._company)
        self.waiting: deque[Request] = deque()
        self.batch_waiting: deque[Request] = deque()
        self.active: dict[int, Request] = {}
        self.batch_active = 0
        self.leaving: list[Request] = []
        """Requests that were given up while their prompts are computed."""
        self._further_slots = 0
        """The slots that beam searches take, without the first slot of each."""
        self.all_blocks = cache_blocks - company
        self._cache_blocks = cache_blocks if prefix_caching else 0
        self.index = PrefixIndex(self._cache_blocks)
        self.tainted = False
        """The cache may hold blocks that were not computed."""
        self.cancelled = False
        """Handles were cancelled; the pipeline drops them in its next step."""
        self._max_num_seqs = max_num_seqs
        self.prefix_caching = prefix_caching
        self._prefilling: dict[int, int] = {}
        self._proven: set[StructuredOutput] = set()
        self.on_trial: Request | None = None
        """The one request in the pipeline that may fail a step: it has a new constraint, or is a
        suspect.
        """

    @property
    def busy(self) -> bool:
        return self.running or self.wanted

    @property
    def wanted(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self.active or self.waiting or self.batch_waiting)

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return len(self.active) + len(self.leaving) + self._further_slots

    @property
    def running(self) -> bool:
        """Whether the pipeline has anything to do."""
        return bool(self.active or self.leaving or self.cancelled)

    def queue_of(self, request: Request) -> deque[Request]:
        """The queue of a request's class."""
        return self.batch_waiting if request.batch else self.waiting

    def admit(self, batch: Decision) -> list[Request]:
        """Take requests from the queues into free slots. Batch requests come last, unless they have
        a grant.
        """
        if self.tainted:
            return []
        admitted = [] if batch.granted else self._admit_from(self.waiting, self._max_num_seqs)
        if self.batch_waiting and batch.rows > self.batch_active:
            most = self.taken + batch.rows - self.batch_active
            admitted += self._admit_from(
                self.batch_waiting, min(most, self._max_num_seqs), batch.prompt_tokens
            )
        if batch.granted:
            for request in admitted:
                request.granted = True
            admitted += self._admit_from(self.waiting, self._max_num_seqs)
        return admitted

    def _admit_from(
        self, waiting: deque[Request], slots: int, prompt_tokens: float = inf
    ) -> list[Request]:
        """Take requests from a queue while fewer than `slots` are taken. They go in order, except
        for those that should wait a step or two, or should go first. The prompts have at most
        `prompt_tokens` together; the first may be longer. A beam search that has no room yet may be
        passed for a while; then all others wait until it has room.

        The pipeline looks into its prefix cache when a request is added, not when it is scheduled.
        So a request waits while another one computes its next uncached block. A constraint that was
        never used is tried by one request at a time, so that a broken constraint is known by the
        step that fails. The requests of a step that failed for an unknown reason are tried one at a
        time too. A request whose prompt is cached goes first: while it waits, other prompts drive
        its own out of the cache.
        """
        if len(waiting) > 1 and self.taken < slots:
            self._cached_first(waiting)
        admitted: list[Request] = []
        delayed: list[Request] = []
        searches: list[Request] = []
        passed = 0
        while waiting and self.taken < slots and len(delayed) < _ADMISSION_SCAN:
            request = waiting.popleft()
            if not self._has_room(request):
                delayed.append(request)
                if request.beams is None or request.passed >= _PATIENCE:
                    break
                searches.append(request)
                continue
            matched = self.index.match(request.blocks)
            fresh_block = request.blocks[matched] if matched < len(request.blocks) else None
            structured = request.sampling.structured
            untried = structured is not None and structured not in self._proven
            on_trial = untried or request.suspect
            if fresh_block in self._prefilling or (on_trial and self.on_trial is not None):
                delayed.append(request)
                continue
            cached = min(matched * BLOCK_SIZE, max(len(request.prompt) - 1, 0))
            new_tokens = len(request.prompt) - cached
            prompt_tokens -= new_tokens
            if prompt_tokens < 0 and admitted:
                delayed.append(request)
                break
            if on_trial:
                self.on_trial = request
            if self.prefix_caching:
                if not request.admitted:  # else the hit is its own earlier work
                    request.cached = cached
                if fresh_block is not None:
                    self._prefilling[fresh_block] = request.id
            request.admitted = True
            request.new_tokens = new_tokens
            self.active[request.id] = request
            self.batch_active += request.batch
            self._further_slots += request.slots - 1
            admitted.append(request)
            passed = len(searches)
        for search in searches[:passed]:
            search.passed += 1
        waiting.extendleft(reversed(delayed))
        return admitted

    def _has_room(self, request: Request) -> bool:
        """Whether a beam search has its slots, and there are blocks for it and for all other
        requests, however long they become: a search without blocks can crash GenAI, or hang it.
        """
        if request.beams is None and not self._further_slots:
            return True
        beside = [*self.active.values(), *self.leaving]
        blocks = request.most_blocks + sum(one.most_blocks for one in beside)
        return self.taken + request.slots <= self._max_num_seqs and blocks <= self.all_blocks

    def _cached_first(self, waiting: deque[Request]) -> None:
        """Move requests with mostly cached prompts before others that have not waited long."""
        ahead = [waiting.popleft() for _ in range(min(len(waiting), _ADMISSION_SCAN))]
        goes = [
            request.passed >= _PATIENCE or self.index.holds_half(request.blocks)
            for request in ahead
        ]
        first = [request for request, soon in zip(ahead, goes, strict=True) if soon]
        rest = [request for request, soon in zip(ahead, goes, strict=True) if not soon]
        if first:
            for request in rest[: len(ahead) - goes[::-1].index(True) - len(first)]:
                request.passed += 1
        waiting.extendleft(reversed(first + rest))

    def step(self) -> None:
        """One step of the pipeline."""
        self.companions.join(self.taken)
        self.pipeline.step()

    def rest(self) -> None:
        """No request runs for now: take the companions out of the pipeline."""
        if self.companions.leave():
            self.pipeline.step()

    def close(self) -> None:
        """Take the requests that were given up out of the pipeline, before it is deleted: GenAI
        would print an error about blocks that are still taken.
        """
        for request in self.leaving:
            request.handle.cancel()
        if self.running:
            with suppress(Exception):
                self.companions.leave()
                self.pipeline.step()

    def note_prefilled(self, request: Request) -> None:
        """The first token is there: the prompt is in the cache, and the constraint works."""
        request.prefilled = True
        request.granted = False
        self._release(request, tried=not request.suspect)
        self.index.insert(request.blocks)
        if request.sampling.structured is not None:
            if len(self._proven) >= _PROVEN:
                self._proven.clear()
            self._proven.add(request.sampling.structured)

    def remove(self, request: Request) -> None:
        """Take a request out that has ended, whatever the reason."""
        if request.id not in self.active:
            if request in (waiting := self.queue_of(request)):
                waiting.remove(request)
            return
        self._free(request)
        self._release(request)
        if request.finish is not None and self.prefix_caching:
            self.index.insert(block_hashes(request.prompt + request.ids[request.resumed :]))

    def _free(self, request: Request) -> None:
        """Free the slots of a request."""
        del self.active[request.id]
        self.batch_active -= request.batch
        self._further_slots -= request.slots - 1

    def give_up(self, request: Request) -> None:
        """Take a request out that was aborted."""
        if request.handle is not None and self._in_prefill(request):
            self._free(request)
            self.leaving.append(request)
            return
        if request.handle is not None:
            request.handle.cancel()
            self.cancelled = True
        self.remove(request)

    def _in_prefill(self, request: Request) -> bool:
        """Whether the request's blocks in the cache may be unfinished."""
        return self.prefix_caching and not request.prefilled

    def note_out_of_cache(self, request: Request) -> None:
        """The pipeline has dropped the request: the cache had no room for it."""
        request.failed = True
        self.tainted = self.tainted or self._in_prefill(request)

    def renew(self, load: Callable[[], tuple[Any, CompiledGrammars]]) -> None:
        """Go on with a new pipeline, whose caches are empty."""
        self.pipeline, self.grammars, self.companions = None, None, Companions(None, 0)
        self.pipeline, self.grammars = load()  # after the memory of the old ones was freed
        self.companions = Companions(self.pipeline, *self._company)
        self.index = PrefixIndex(self._cache_blocks)
        self.tainted = self.cancelled = False

    def note_step(self) -> None:
        """Count a step without a fault: enough of them clear the request on trial. Take out
        requests that were given up and have their first token.
        """
        for request in [one for one in self.leaving if not _has_no_token(one.handle)]:
            self.leaving.remove(request)
            self.tainted = self.tainted or not request.handle.can_read()  # no room in the cache
            request.handle.cancel()
            self.cancelled = True
            self._release(request)
        tried = self.on_trial
        if tried is not None and tried.suspect and tried.prefilled:
            tried.harmless_steps += 1
            if tried.harmless_steps >= _HARMLESS:
                tried.suspect = False
                self.on_trial = None

    def surplus(self, most: int) -> list[Request]:
        """The batch requests that leave the pipeline so that `most` are left, the last ones first.

        A request stays if it has a grant, is on trial, has images or has no token yet. It also
        stays if it would have to begin anew, and its tokens were sent or that happened too often.
        """
        found: list[Request] = []
        for request in reversed(self.active.values()):
            if self.batch_active - len(found) <= most:
                break
            if not request.batch or request.granted or request is self.on_trial:
                continue
            if request.picture is not None:  # its pixels were dropped
                continue
            if self._in_prefill(request):
                continue
            anew = not request.resumes_exactly and request.prefilled
            if anew and (request.evicted >= _MOST_ANEW or (request.stream and request.reported)):
                continue
            found.append(request)
        return found

    def evict(self, request: Request) -> None:
        """Take a request out of the pipeline, after its tokens were read, and queue it again."""
        request.evicted += 1
        request.handle.cancel()
        self.cancelled = True
        if request.prefilled and self.prefix_caching:
            self.index.insert(block_hashes(request.prompt + request.ids[request.resumed :]))
        self.remove(request)
        self.restart(request, anew=not request.resumes_exactly)

    def restart(self, request: Request, *, anew: bool = False) -> None:
        """Queue a request again. Its tokens so far become part of its prompt; they are dropped if
        it is not resumable or begins `anew`.
        """
        request.handle = None
        request.prefilled = False
        request.harmless_steps = 0
        if anew or not request.resumable:
            request.prompt = request.prompt[: request.prompt_tokens]
            request.max_new_tokens += request.resumed
            request.resumed = 0
            request.blocks = block_hashes(request.prompt)
            request.ids, request.logprobs, request.reported, request.held_text = [], [], 0, ""
            request.shown, request.stop = TextStream(), StopStrings(request.sampling.stop)
        else:
            made = request.ids[request.resumed :]
            request.prompt = request.prompt + made
            request.resumed = len(request.ids)
            request.max_new_tokens -= len(made)
            request.blocks = block_hashes(request.prompt)
        self.queue_of(request).appendleft(request)

    def recover(self, error: Exception) -> list[tuple[Request, Failed | None]]:
        """Get the pipeline to work again after an exception in a step. Returns its requests, each
        with its failure; None: the request goes on.

        The pipeline works again when all its requests were dropped and it was stepped. A request
        that was on trial, or alone, is to blame and fails. If it is unknown which request is to
        blame, all are tried one at a time. The other requests go on from where they are: their
        tokens so far become part of the prompt. A request that is not resumable starts again if its
        tokens were not sent; else it fails. A request with images fails too, as its pixels were
        dropped.

        A constraint fails at the first token, when the prompt is computed. After another fault, the
        cache may hold unfinished blocks of requests without a token.
        """
        self.companions.leave()
        requests, leaving = list(self.active.values()), self.leaving
        running = [*requests, *leaving]
        blamed = self.on_trial or (running[0] if len(running) == 1 else None)
        for request in running:
            constrained = request is blamed and request.sampling.structured is not None
            if self._in_prefill(request) and not constrained:
                self.tainted = True
            if request.handle is not None:
                request.handle.cancel()
        self.leaving = []
        for request in leaving:
            self._release(request)
        try:
            self.pipeline.step()
        except Exception:  # the pipeline reports the fault once more as it drops the requests
            self.cancelled = True
        after: list[tuple[Request, Failed | None]] = []
        reason = reason_of(error)
        for request in reversed(requests):
            self.remove(request)
            failure = None
            if request is blamed:
                untried = request.sampling.structured is not None and not request.prefilled
                why = (
                    "the constraint cannot be compiled"
                    if untried
                    else "the engine cannot answer this request"
                )
                failure = Failed(request.id, RequestError.kind, f"{why}: {reason}")
            elif request.picture is not None or (
                not request.resumable and request.stream and request.reported
            ):
                why = f"the engine failed in a step: {reason}"
                failure = Failed(request.id, EngineError.kind, why)
            else:
                request.suspect = request.suspect or blamed is None
                self.restart(request)
            after.append((request, failure))
        return after

    def _release(self, request: Request, *, tried: bool = True) -> None:
        if tried and self.on_trial is request:
            self.on_trial = None
        for block in [b for b, owner in self._prefilling.items() if owner == request.id]:
            del self._prefilling[block]


def _has_no_token(handle: Any) -> bool:
    """Whether a request still runs and waits for its first token."""
    return bool(handle.get_status() == RUNNING and not handle.can_read())
