"""Beam searches in a lane.

GenAI gives the beams of a search when the last one has ended, and nothing before. So with a prefix
cache a search begins as a request for one token, its opening: that computes the prompt. Others with
the same prefix wait for that alone, and a search that is given up leaves no unfinished blocks.

A search that runs out of blocks of the KV cache crashes GenAI 2026.4.1 or hangs it. `Lane` keeps
enough for the longest answers of all that runs beside one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import openvino_genai as genai

from penstock.engines.beams import Beams
from penstock.engines.openvino.lanes.lane import Lane
from penstock.engines.openvino.lanes.request import Request, TextStream
from penstock.engines.openvino.pipeline import RUNNING
from penstock.errors import RequestError
from penstock.kv.prefix_index import BLOCK_SIZE

_STOPPED = genai.GenerationFinishReason.STOP


def check_search(request: Request, slots: int, blocks: int) -> None:
    """Raise `RequestError` for a search that `slots` or `blocks` of the cache can never hold."""
    width, needed = request.slots, request.most_blocks
    if width > slots:
        raise RequestError(
            f"{width} beams need as many slots, and max_num_seqs is {slots}: ask for fewer",
            param="n",
        )
    if needed > blocks:
        raise RequestError(
            f"{width} beams of up to {request.max_new_tokens} tokens may need"
            f" {needed * BLOCK_SIZE:,} tokens of KV cache, which holds {blocks * BLOCK_SIZE:,}:"
            " lower max_tokens or n, or raise kv_cache_memory_bytes",
            param="max_tokens",
        )


def next_part(lane: Lane, request: Request) -> tuple[int, Beams | None]:
    """The most new tokens and the beams of what the pipeline computes next for a request."""
    if request.beams is not None and lane.prefix_caching and not request.prefilled:
        return 1, None
    return request.max_new_tokens, request.beams


def collect(lane: Lane, request: Request, add: Callable[[Lane, Request], None]) -> bool:
    """Take the beams of a search that has ended, each as a request that has ended; `add` the search
    itself after its opening. Returns whether there is anything to report.
    """
    status = request.handle.get_status()
    if status == RUNNING:
        return False
    if status != genai.GenerationStatus.FINISHED:
        lane.note_out_of_cache(request)
        return True
    opened = next_part(lane, request)[1] is None
    lane.note_prefilled(request)
    if opened:
        add(lane, request)
        return False
    for index, output in enumerate(request.handle.read_all()):
        request.answers.append(_answer(request, index, output))
    request.finish = "stop"
    return True


def _answer(request: Request, index: int, output: Any) -> Request:
    answer = copy.copy(request)
    answer.index, answer.ids, answer.shown = index, list(output.generated_ids), TextStream()
    answer.finish = "stop" if output.finish_reason == _STOPPED else "length"
    return answer
