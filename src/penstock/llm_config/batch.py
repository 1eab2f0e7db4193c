"""How a served model shares itself between online requests and batch work."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from penstock.config import Options

CLASS_HEADER = "x-penstock-class"
"""The header of a request with its class, "online" (the default) or "batch"."""


class BatchConfig(Options, kw_only=True):
    """What batch work may cost online requests, and what it gets at least.

    The 95th percentile of the engine's time to first token of online requests stays within
    `ttft_target_ms`, or, where that is None, within `ttft_ratio` times (2) what it would be without
    batch work. While batch work waits, a row of it takes part in at least the share `min_share`
    (0.05) of the engine's steps, whatever the target; 0 promises nothing.
    """

    ttft_target_ms: Annotated[float, Meta(gt=0)] | None = None
    ttft_ratio: Annotated[float, Meta(gt=1)] = 2.0
    min_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
