"""`engine_kwargs` of the simulated engine."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from penstock.config import Count, Positive
from penstock.openai.parsers.table import check_names

Milliseconds = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class SimulatedOptions(Struct, frozen=True):
    """`engine_kwargs` of the simulated engine. Times are in milliseconds; rates are shares of
    requests, 0 to 1.

    A step takes `time_per_token_ms` × (1 + `batch_slowdown` × (running - 1)); a new request's first
    token comes `time_to_first_token_ms` + `prefill_ms_per_token` × uncached prompt tokens after it
    was admitted. Which requests are hit by a fault is drawn from the prompt and `seed`, so the same
    rows fail each time: `error_rate` fail for good, `slow_rate` run `slow_factor` times longer,
    `hang_rate` never end. After `die_after` finished requests the engine dies, `die_times` times in
    all; a prompt that holds the text `die_on` kills it each time, when its first token is due. With
    `kv_transfer_config: {kv_connector: SimulatedConnector}` it exchanges KV caches with others in
    `kv_transfer_ms` each; those of another process are believed to be there. Where steps take no
    time, `steps_per_turn` pass before the event loop gets its turn: an engine in a process of its
    own does not wait for the loop either. With `deterministic` requests that sample without a seed
    get one made from what they ask.
    """

    seed: int = 0
    time_to_first_token_ms: Milliseconds = 0.0
    time_per_token_ms: Milliseconds = 0.0
    batch_slowdown: Annotated[float, Meta(ge=0)] = 0.0
    prefill_ms_per_token: Milliseconds = 0.0
    start_ms: Milliseconds = 0.0
    steps_per_turn: Positive = 1
    output_tokens: Positive = 16
    max_num_seqs: Positive = 64
    max_model_len: Positive = 32768
    kv_cache_blocks: Positive = 65536
    error_rate: Share = 0.0
    slow_rate: Share = 0.0
    slow_factor: Annotated[float, Meta(ge=1)] = 10.0
    hang_rate: Share = 0.0
    die_after: Count = 0
    die_times: Count = 1
    die_on: Annotated[str, Meta(min_length=1)] | None = None
    kv_transfer_config: dict[str, Any] | None = None
    kv_transfer_ms: Milliseconds = 0.0
    deterministic: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def __post_init__(self) -> None:
        check_names(self.tool_call_parser, self.reasoning_parser)


COSTS_ONLY = frozenset(
    {
        *("time_to_first_token_ms", "time_per_token_ms", "batch_slowdown"),
        *("prefill_ms_per_token", "start_ms"),
        *("steps_per_turn", "max_num_seqs", "kv_cache_blocks"),
        *("kv_transfer_config", "kv_transfer_ms"),
        *("error_rate", "slow_rate", "slow_factor", "hang_rate"),
        *("die_after", "die_times", "die_on"),
    }
)
