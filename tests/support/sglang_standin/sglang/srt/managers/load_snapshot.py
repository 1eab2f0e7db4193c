from __future__ import annotations

import msgspec


class LoadSnapshot(msgspec.Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    token_usage: float = 0.0
