"""Sequences that run beside a deterministic lane's requests while it has few.

The CPU's kernels for a batch give each row what it would get in any other batch, bit for bit. A row
that is alone, or among fewer sequences than there are threads, goes through kernels of another
order of sums. So a few sequences of no meaning keep it company.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock.engines.openvino.options import usable_cpus

_MOST = 16
_TOKENS = 24
"""Prompt and answer stay within one block of the cache."""
_RUNNING = genai.GenerationStatus.RUNNING


def sequences_wanted(deterministic: bool, num_threads: int) -> int:
    """How many sequences a step should have at least; 0 where nothing is promised.

    `num_threads` 0: all cores.
    """
    if not deterministic:
        return 0
    return max(min(num_threads or usable_cpus(), _MOST), 2)


class Companions:
    """Those of one pipeline, `wanted` together with its requests."""

    def __init__(self, pipeline: Any, wanted: int) -> None:
        self._pipeline = pipeline
        self._wanted = wanted
        self._ids = count(1 << 40)  # requests count from 1
        self._handles: list[Any] = []

    def join(self, running: int) -> None:
        """Make them and `running` requests as many as are wanted. Those too many end by
        themselves.
        """
        if not self._wanted:
            return
        self._handles = [handle for handle in self._handles if handle.get_status() == _RUNNING]
        for _ in range(self._wanted - running - len(self._handles) if running else 0):
            config = genai.GenerationConfig(
                max_new_tokens=_TOKENS, ignore_eos=True, apply_chat_template=False
            )
            prompt = ov.Tensor(np.zeros((1, 1), dtype=np.int64))
            self._handles.append(self._pipeline.add_request(next(self._ids), prompt, config))

    def leave(self) -> bool:
        """Cancel them all; the pipeline forgets them in its next step. Tells whether there were
        any.
        """
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.cancel()
        return bool(handles)
