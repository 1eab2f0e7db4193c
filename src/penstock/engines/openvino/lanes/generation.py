"""Generation inside the worker process: continuous batching over OpenVINO GenAI's pipeline.

The life of a request: `submit` tokenizes it (requests that arrive together share a call) → it waits
in its lane → it is admitted when a slot is free and no other request is computing the prefix that
it could reuse → it gets one token a step → its new text is detokenized together with that of others
→ its last delta has the finish reason and the usage.

A lane is one pipeline: the base model, or the base with one adapter merged in. The pipeline ignores
adapters given per request and its prefix cache does not tell them apart, so each adapter has a
pipeline of its own, and every busy lane is stepped in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock.engines.openvino.constraints.grammar_cache import CompiledGrammars
from penstock.engines.openvino.lanes.beam_search import check_search, collect, next_part
from penstock.engines.openvino.lanes.grammars import GrammarQueue
from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Deltas, Request
from penstock.engines.openvino.lanes.shared_steps import SharedSteps
from penstock.engines.openvino.lanes.vision import Vision
from penstock.engines.openvino.logits.biased import BiasedPipeline, Handle
from penstock.engines.openvino.logits.deciding import Deciding
from penstock.engines.openvino.logits.scoring import Logits, Scoring, check_together
from penstock.engines.openvino.logits.second_copy import is_biased, needs_scores
from penstock.engines.openvino.model.files import read_config
from penstock.engines.openvino.options import OpenVINOOptions, failure_of, reason_of
from penstock.engines.openvino.pipeline import (
    RUNNING,
    Pipelines,
    generation_config,
    sequences_wanted,
)
from penstock.engines.process import Call, Failed, Reply, Submit
from penstock.engines.sampling import check_id_range, most_new_tokens
from penstock.errors import ContextLengthError, EngineError, PenstockError, RequestError
from penstock.kv.prefix_index import BLOCK_SIZE
from penstock.llm_config.batch import BatchConfig
from penstock.types import Delta

_BIASED = "\0biased"
"""The name of the lane whose requests we sample ourselves; no adapter can have this name."""


class Generation:
    """The model and its requests. Single-threaded: `step` holds the interpreter lock anyway."""

    def __init__(
        self,
        path: str,
        options: OpenVINOOptions,
        context_length: int,
        sharing: BatchConfig | None = None,
    ) -> None:
        self.options = options
        self._shared = SharedSteps(
            sharing or BatchConfig(), options.max_num_seqs, options.max_num_batched_tokens
        )
        self.context_length = context_length
        self._pipelines = Pipelines(path, options)
        self.sees = self._pipelines.sees
        self._ids = count(1)
        self._steps = 0
        self._requests: dict[int, Request] = {}
        self._adapter_paths: dict[str, str] = {}
        self._grammars = GrammarQueue(background=options.draft_model is None)
        self._logits = Logits(path, options)
        self._scoring = Scoring(self._logits)
        pipeline = self._pipelines.first()
        self._cache_tokens = self._pipelines.cache_blocks * BLOCK_SIZE
        self._tokenizer = self._pipelines.tokenizer(pipeline)
        self.tokenize, self.detokenize = self._tokenizer.tokenize, self._tokenizer.detokenize
        self.encoded = self._tokenizer.encoded
        self.vocabulary = self._tokenizer.vocabulary
        self.chat_template = self._tokenizer.chat_template
        self._vision: Vision | None = None
        if self._pipelines.sees:
            self.chat_template = lambda: self._pipelines.chat_template
            self._vision = Vision(read_config(Path(path)), options)
        self.special_tokens = self._tokenizer.special_tokens
        exact = options.deterministic
        self._deciding_logits = Logits(path, options, exact, grows=False)
        self._deciding = Deciding(
            self._deciding_logits, self._tokenizer, context_length, exact, self._vision
        )
        self._lanes: dict[str | None, Lane] = {None: self._new_lane(pipeline)}
        end = self._tokenizer.end
        self._stop_ids = set(pipeline.get_config().stop_token_ids) | ({end} if end >= 0 else set())
        self._deltas = Deltas(self._tokenizer, self._scoring, self._stop_ids)

    # Face of the worker
    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._busy_beside or any(lane.busy for lane in self._lanes.values())

    @property
    def _busy_beside(self) -> bool:
        """Whether there is anything to do beside the steps of lanes."""
        return (
            self._grammars.busy
            or (self._vision is not None and self._vision.busy)
            or self._scoring.busy
            or self._deciding.busy
        )

    def submit(self, submits: Iterable[Submit]) -> list[Failed]:
        """Queue requests; returns those that are refused."""
        refused: list[Failed] = []
        arrived = list(submits)
        try:
            tokenized = self._tokenized(arrived)
        except Exception as error:  # one of the requests is to blame
            if len(arrived) == 1:
                return [_not_taken(arrived[0].id, error)]
            return [failed for submit in arrived for failed in self.submit([submit])]
        for submit, prompt in tokenized:
            try:
                request = self._request(submit, prompt)
                self._check(request)
                if isinstance(submit.prompt, str):
                    self._tokenizer.check_uncut(prompt, "prompt", "messages")
                lane = self._lane(_lane_of(request))
                if request.picture is not None and self._vision is not None:
                    self._vision.begin(lane, request)
                elif needs_scores(request.sampling):
                    self._scoring.begin(lane, request)
                else:
                    self._grammars.queue(lane, request)
                self._requests[request.id] = request
                self._shared.came(request.id, submit.at, batch=request.batch)
            except PenstockError as error:
                refused.append(Failed.of(submit.id, error))
            except Exception as error:
                refused.append(_not_taken(submit.id, error))
        return refused

    def abort(self, request_id: int) -> None:
        """Drop a request and free its slot. An unknown id is ignored: it may just have ended."""
        request = self._requests.pop(request_id, None)
        if request is None:
            self._deciding.abort(request_id)
            return
        self._scoring.forget(request)
        self._shared.gone(request.id)
        if self._vision is not None:
            self._vision.forget(request)
        if self._grammars.forget(request):
            return
        self._lanes[_lane_of(request)].give_up(request)

    def step(self) -> tuple[list[tuple[int, Delta]], list[Failed]]:
        """Give every running request of every lane its next token."""
        deltas: list[tuple[int, Delta]] = []
        failures = self._take_compiled() if self._grammars.busy else []
        if self._vision is not None and self._vision.busy:
            failures += self._take_decoded(self._vision)
        self._steps += 1
        lanes = list(self._lanes.values())
        for lane, request in self._shared.begin(lanes):
            self._read(request)
            lane.evict(request)
            self._scoring.restarted(request)
        for lane in lanes:
            if not lane.busy:
                continue
            if lane.tainted and not lane.taken:
                self._renew(lane)
            for request in lane.admit(self._shared.decision_for(lane)):
                try:
                    self._add(lane, request)
                except Exception as error:  # GenAI refuses this request alone
                    lane.remove(request)
                    self._forget(request)
                    failures.append(_not_taken(request.id, error))
            if not lane.running:
                continue  # only batch requests are there, and they wait
            self._shared.steps(lane)
            try:
                lane.step()
            except Exception as error:
                failures += self._recover(lane, error)
                continue
            lane.cancelled = False
            changed = [request for request in lane.active.values() if self._collect(lane, request)]
            lane.note_step()
            read = [request for request in changed if not self._scoring.note(request)]
            deltas += self._deltas.of(lane, read)
            for request in changed:
                if request.finish is not None or request.failed:
                    lane.remove(request)
                if request.failed or (request.finish is not None and request in read):
                    self._forget(request)
                if request.failed:
                    why = "the KV cache is too small for this request"
                    failures.append(Failed(request.id, EngineError.kind, why))
            if not lane.taken:
                lane.rest()
        self._shared.end()
        if self._scoring.busy:
            deltas += self._take_scored(failures)
        return deltas, failures

    @property
    def pause(self) -> float:
        """Seconds until there is something to do, unless a message comes."""
        return 0.0 if self._busy_beside else self._shared.pause

    def ping(self) -> None:
        """Answer, which shows that the process is alive."""

    def release_logits(self) -> None:
        """Free the copies of the model, unless one is being read."""
        if not (self._scoring.busy or self._deciding.busy):
            self._logits.release()
            self._deciding_logits.release()

    def begin_decision(self, call: Call) -> None:
        """Take in a request for decisions; `decided` returns its answer later."""
        self._deciding.begin(call)

    def decided(self) -> list[Reply | Failed]:
        """The answers of one turn of reading."""
        return self._deciding.turn() if self._deciding.busy else []

    def metrics(self) -> dict[str, float]:
        """Counts of steps and requests, and how full the fullest KV cache is (0 to 1)."""
        lanes = self._lanes.values()
        return {
            "steps": self._steps,
            "requests_running": sum(len(lane.active) for lane in lanes),
            "requests_waiting": sum(len(lane.waiting) + len(lane.batch_waiting) for lane in lanes),
            "kv_cache_usage": max(lane.pipeline.get_metrics().cache_usage for lane in lanes) / 100,
            **self._shared.metrics(),
        }

    def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter as a lane. The least recently used idle one leaves if needed."""
        if self._adapter_paths.get(name) == path and name in self._lanes:
            return
        self.remove_adapter(name)
        self._lanes[name] = self._adapter_lane(path)
        self._adapter_paths[name] = path

    def remove_adapter(self, name: str) -> None:
        """Drop an adapter. Raises `EngineError` while a request uses it."""
        if self._asked(name):
            raise EngineError(
                f"the adapter '{name}' is in use: remove or replace it when its requests have ended"
            )
        if (lane := self._lanes.pop(name, None)) is not None:
            lane.close()
        self._adapter_paths.pop(name, None)

    def _asked(self, name: str | None) -> bool:
        return any(_lane_of(one) == name for one in self._requests.values())

    def reset_prefix_cache(self) -> None:
        """Empty the caches by reloading the base; adapters come back when next used."""
        if self._busy_beside or any(lane.wanted for lane in self._lanes.values()):
            raise EngineError("the prefix cache can only be reset while no request runs")
        while self._lanes:
            self._lanes.popitem()[1].close()
        self._lanes[None] = self._new_lane(self._pipelines.base())

    # One request
    def _tokenized(self, submits: list[Submit]) -> list[tuple[Submit, list[int]]]:
        """Each request with its prompt's ids. One call encodes all texts, as calls cost much."""
        if self._vision is not None:
            return [(submit, []) for submit in submits]  # see _request
        ready: list[tuple[Submit, list[int]]] = []
        for special in (False, True):
            texts = [
                s for s in submits if isinstance(s.prompt, str) and s.special_tokens == special
            ]
            if texts:
                ids = self._tokenizer.encode([str(s.prompt) for s in texts], special)
                ready += zip(texts, ids, strict=True)
        ready += [(s, s.prompt) for s in submits if not isinstance(s.prompt, str)]
        return sorted(ready, key=lambda pair: pair[0].id) if len(ready) > 1 else ready

    def _request(self, submit: Submit, prompt: list[int]) -> Request:
        if self._vision is None:
            return Request(submit, prompt)
        text, ids, picture = self._vision.prompt(submit, self._tokenizer)
        request = Request(submit, ids)
        request.text, request.picture = text, picture
        return request

    def _check(self, request: Request) -> None:
        """Refuse a request that the pipeline would wrongly accept, or die of."""
        size, wanted = len(request.prompt), request.sampling.max_tokens
        request.max_new_tokens = most_new_tokens(
            size, wanted, self.context_length, request.sampling.whole
        )
        if size >= self._cache_tokens:
            raise ContextLengthError(
                f"prompt is too long: {size} tokens. The KV cache holds {self._cache_tokens}; raise"
                " kv_cache_memory_bytes"
            )
        ids = request.prompt if request.picture is None else [t for t in request.prompt if t >= 0]
        check_id_range(ids, self._tokenizer.vocabulary, "prompt")
        stop_ids = request.sampling.stop_token_ids
        check_id_range(stop_ids, self._tokenizer.vocabulary, "stop_token_ids")
        check_together(request, self._tokenizer.vocabulary)
        if self.options.cache_eviction is not None:
            self.options.cache_eviction.check_prompt(size)
        if request.beams is not None:
            check_search(request, self.options.max_num_seqs, self._lanes[None].all_blocks)

    # Lanes
    def _lane(self, adapter: str | None) -> Lane:
        lane = self._lanes.pop(adapter, None)
        if lane is None and adapter == _BIASED:
            pipeline = BiasedPipeline(self._logits.model)
            lane = Lane(pipeline, 0, self.options.max_num_seqs, prefix_caching=False)
        elif lane is None:
            lane = self._adapter_lane(self._adapter_paths[str(adapter)])
        self._lanes[adapter] = lane  # the dict is in the order of use
        return lane

    def _adapter_lane(self, path: str) -> Lane:
        names = [name for name in self._lanes if name not in (None, _BIASED)]
        if len(names) >= self.options.max_loras:
            idle = [n for n in names if not (self._lanes[n].busy or self._asked(n))]
            if idle:
                del self._lanes[idle[0]]
        return self._new_lane(self._pipelines.with_adapter(path))

    def _new_lane(self, pipeline: Any) -> Lane:
        options = self.options
        return Lane(
            pipeline,
            self._pipelines.cache_blocks,
            options.max_num_seqs,
            options.enable_prefix_caching,
            sequences_wanted(options.deterministic, options.num_threads),
            self._grammars_of(pipeline),
            self._pipelines.sees,
        )

    def _grammars_of(self, pipeline: Any) -> CompiledGrammars:
        tokenizer, vocabulary = pipeline.get_tokenizer(), self._tokenizer.vocabulary
        return CompiledGrammars(tokenizer, lambda: self._pipelines.logits() or vocabulary)

    def _renew(self, lane: Lane) -> None:
        """Load a lane's pipeline anew. If that fails, the process ends; the parent restarts it."""
        (name,) = (name for name, one in self._lanes.items() if one is lane)

        def load() -> tuple[Any, CompiledGrammars]:
            pipelines = self._pipelines
            new = pipelines.with_adapter(self._adapter_paths[name]) if name else pipelines.base()
            return new, self._grammars_of(new)

        lane.renew(load)

    # Images
    def _take_decoded(self, vision: Vision) -> list[Failed]:
        """Queue the requests whose images are decoded."""
        failures: list[Failed] = []
        serving = any(lane.busy for lane in self._lanes.values())
        for lane, request, error in vision.turn(serving):
            if error is None:
                self._grammars.queue(lane, request)
            else:
                self._forget(request)
                failures.append(Failed.of(request.id, error))
        return failures

    # Log probabilities
    def _take_scored(self, failures: list[Failed]) -> list[tuple[int, Delta]]:
        """Queue requests whose log probabilities were read, or return their deltas."""

        def fail(request: Request, error: Exception) -> None:
            self.abort(request.id)
            failures.append(failure_of(request.id, error))

        deltas: list[tuple[int, Delta]] = []
        for scored in self._scoring.turn(fail):
            request = scored.request
            if request.handle is None and request.finish is None:
                self._grammars.queue(scored.lane, request)
            else:
                deltas += self._deltas.of(scored.lane, [request])
                if request.finish is not None:
                    self._forget(request)
        return deltas

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.id, None)
        self._shared.gone(request.id)
        self._scoring.forget(request)
        if self._vision is not None:
            self._vision.forget(request)

    def _take_compiled(self) -> list[Failed]:
        """Queue the requests whose grammars are compiled. Returns the failures of others."""
        failures = self._grammars.turn(self._lanes.values())
        for request, _ in failures:
            self._forget(request)
        return [failure for _, failure in failures]

    # One request
    def _add(self, lane: Lane, request: Request) -> None:
        if isinstance(lane.pipeline, BiasedPipeline):
            stops = self._deltas.stop_ids_of(request)
            if request.sampling.ignore_eos:
                stops = set(request.sampling.stop_token_ids)
            bad = request.sampling.bad_words
            forms = [form for word in bad for form in (word, f" {word.lstrip()}")]
            words = self._tokenizer.encode(forms, special_tokens=False)
            request.handle = lane.pipeline.add(
                Handle(request.prompt, request.sampling, request.max_new_tokens, stops, words)
            )
            return
        most, beams = next_part(lane, request)
        config = generation_config(
            request.sampling, most, self._tokenizer.end, self._stop_ids, self.options, beams
        )
        shown, text = request.picture, request.text
        prompt: list[Any] = [text, *(() if shown is None else shown.tensors)]
        if text is None:
            prompt = [ov.Tensor(np.array([request.prompt], dtype=np.int64))]
        config.apply_chat_template = text is not None and not request.special_tokens  # see AS_IS
        more = {} if shown is None else shown.options
        request.handle = lane.pipeline.add_request(next(self._ids), *prompt, config, **more)
        if self._vision is not None:
            self._vision.shown(request)

    def _collect(self, lane: Lane, request: Request) -> bool:
        """Read the tokens that the step made for a request. Returns whether there is news of it."""
        handle = request.handle
        if request.beams is not None:
            return collect(lane, request, self._add)
        if not request.prefilled and handle.can_read():
            lane.note_prefilled(request)
        running = handle.get_status() == RUNNING
        if request.watched:
            self._read(request)
        elif running:
            return False
        else:
            for output in handle.read_all():
                self._append(request, output)
        if not running and request.finish is None:
            lane.note_out_of_cache(request)
        if request.picture is not None and self._vision is not None and request.finish:
            self._vision.learn(request, handle.get_perf_metrics().get_num_input_tokens())
        return request.finish is not None or request.failed or len(request.ids) > request.reported

    def _read(self, request: Request) -> None:
        """Take the tokens that the pipeline has made for a request so far."""
        while request.handle.can_read():
            for output in request.handle.read().values():
                self._append(request, output)

    def _append(self, request: Request, output: Any) -> None:
        request.ids += output.generated_ids
        if request.sampling.logprobs is not None:
            request.logprobs += output.generated_log_probs
        if output.finish_reason == genai.GenerationFinishReason.STOP:
            request.finish = "stop"
        elif output.finish_reason == genai.GenerationFinishReason.LENGTH:
            request.finish = "length"

    # Faults
    def _recover(self, lane: Lane, error: Exception) -> list[Failed]:
        failed: list[Failed] = []
        for request, failure in lane.recover(error):
            if failure is None:
                self._scoring.restarted(request)
            else:
                self._forget(request)
                failed.append(failure)
        return failed


def _lane_of(request: Request) -> str | None:
    return _BIASED if is_biased(request.sampling) else request.adapter


def _not_taken(request_id: int, error: Exception) -> Failed:
    """The failure of a request that GenAI refuses."""
    return Failed(
        request_id, RequestError.kind, f"the engine does not take this request: {reason_of(error)}"
    )
