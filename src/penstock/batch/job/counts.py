"""What a job has done so far, in numbers."""

from __future__ import annotations

from msgspec import Struct, field

from penstock.balance.backoff import Pauses


class Counts(Struct):
    """`rows` are all finished rows of the output, `ok` and `errors` (by type) among them.

    Of this run alone: tokens computed, `cached_tokens` of the prompts, `engine_calls`, `seconds` in
    all and `row_seconds` of them after the engine was loaded, and rows answered without computing:
    `deduplicated` from an equal request, `resumed` from an earlier run. `total` is the number of
    rows to do, if known. `pauses` are those that servers asked for.
    """

    rows: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    engine_calls: int = 0
    deduplicated: int = 0
    resumed: int = 0
    seconds: float = 0.0
    row_seconds: float = 0.0
    total: int | None = None
    pauses: Pauses = field(default_factory=Pauses)

    @property
    def failed(self) -> int:
        """Rows that ended in an error."""
        return sum(self.errors.values())

    @property
    def ok(self) -> int:
        return self.rows - self.failed

    @property
    def cached_share(self) -> float:
        """The share of the prompts' tokens that the engine had in its prefix cache, from 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated in a second, loading the engine not counted."""
        return self.completion_tokens / self.row_seconds if self.row_seconds > 0 else 0.0
