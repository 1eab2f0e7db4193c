"""Which versions of an engine's package are known to work, and what is said of others."""

from __future__ import annotations

import re

from msgspec import Struct

from penstock.errors import EngineStartError


class Versions(Struct, frozen=True):
    """From `oldest` to `newest`, both included; as many of a version's numbers count as `oldest`
    has.

    An older one is refused. A newer one is tried, and named in the error if it fails. A version
    that is not known (empty: a source tree) passes.
    """

    package: str
    oldest: tuple[int, ...]
    newest: tuple[int, ...]

    def check(self, installed: str) -> None:
        """Raise `EngineStartError` if the installed version is too old."""
        if installed and self._numbers(installed) < self.oldest:
            raise EngineStartError(
                f"{self.package} {installed} is not supported: the engine works with {self}"
            )

    def note(self, installed: str) -> str:
        """What to add to an error that a version outside the range may explain; else empty."""
        if not installed or self.oldest <= self._numbers(installed) <= self.newest:
            return ""
        return (
            f" ({self.package} {installed} is not among the versions that the engine was tried"
            f" with, {self})"
        )

    def __str__(self) -> str:
        return " to ".join(".".join(map(str, numbers)) for numbers in (self.oldest, self.newest))

    def _numbers(self, version: str) -> tuple[int, ...]:
        found = re.findall(r"\d+", version.partition("+")[0])
        return tuple(int(number) for number in found[: len(self.oldest)])
