"""What a campaign finds of each promise: how often it was put to the test, and how often it
held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Promise:
    """One sentence that users rely on. `broken` says what was seen where it did not hold."""

    says: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def held(self, how: str = "") -> None:
        """It was tried and held; `how`, where there are several ways."""
        self.tried += 1
        if how:
            self.seen[how] += 1

    def broke(self, what: str) -> None:
        """It was tried and did not hold."""
        self.tried += 1
        self.broken.append(what)

    @property
    def row(self) -> str:
        """A row of the table."""
        kept = self.tried - len(self.broken)
        how = ", ".join(f"{count} {name}" for name, count in sorted(self.seen.items()))
        return f"| {self.says} | {self.tried:,} | {kept:,} | {how} |"


def table(promises: Iterable[Promise]) -> str:
    """The campaign's result in Markdown."""
    head = ["| promise | tried | held | how |", "| --- | ---: | ---: | --- |"]
    return "\n".join([*head, *(promise.row for promise in promises)])
