"""OpenVINO's core: one for each process, which stays.

Its plugin for the CPU gives the thread that loads it an alternate signal stack. When the last user
of a plugin goes in another thread, perhaps by a garbage collection there, that stack goes too, and
the next signal to the first thread ends the process without a word.
"""

from __future__ import annotations

from functools import cache

import openvino as ov


@cache
def shared_core() -> ov.Core:
    """The core of this process."""
    return ov.Core()
