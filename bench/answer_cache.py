"""How fast the cache that jobs share is with a million answers: one SQLite file, beside a file for
each answer.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
from harness import Bar, Contestant
from penstock.batch.cache.database import Answer, AnswerDatabase
from penstock.batch.rows.row import Outcome
from penstock.types import Usage

_AT_ONCE = 1000
_LOOK_UPS = 20_000


def main() -> int:
    """Measure, print, and return the exit code."""
    options = harness.parser(__doc__)
    options.add_argument("--answers", type=int, default=1_000_000, help="in SQLite (%(default)s)")
    options.add_argument("--files", type=int, default=50_000, help="in files (%(default)s)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = AnswerDatabase(Path(folder, "db"), most_bytes=1 << 40, seconds=1e6)
        outcome = Outcome("An answer of some words. " * 8, None, "stop", Usage(30, 40, 0), 1, 9.5)
        database.put(_digest(0), outcome)
        packed = database._waiting[_digest(0)].packed
        began = time.perf_counter()
        for start in range(0, args.answers, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, args.answers))
            made = int(time.time())
            database.add([Answer(_digest(each), made, packed) for each in numbers], sent=False)
        written = args.answers / (time.perf_counter() - began)
        files = Path(folder, "files")
        for number in range(args.files):
            path = _file(files, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed)
        draw = random.Random(0)
        sides = [
            Contestant("SQLite, hits", _speed(draw, args.answers, database.get)),
            Contestant(
                "SQLite, misses",
                _speed(draw, args.answers, lambda digest: database.get(digest[::-1])),
            ),
            Contestant("files, hits", _speed(draw, args.files, _Files(files).get)),
        ]
        found = harness.compare("look-ups", "1/s", sides, args.rounds)
        database.close()
        size = sum(path.stat().st_size for path in Path(folder, "db").iterdir())
    print(f"{written:,.0f} answers written a second, {size / args.answers:,.0f} bytes each")
    bar = Bar("look-ups a second", found["SQLite, hits"].median, 20_000, at_least=True)
    return harness.finish(args, [found], [bar])


class _Files:
    """The other way: a file for each answer, by the number that its digest begins with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: bytes) -> object:
        return _file(self._folder, _number(digest)).read_bytes()


def _file(folder: Path, number: int) -> Path:
    name = _digest(number).hex()
    return folder / name[-2:] / name


def _speed(draw: random.Random, count: int, get: Callable[[bytes], object]) -> Callable[[], float]:
    def measure() -> float:
        digests = [_digest(draw.randrange(count)) for _ in range(_LOOK_UPS)]
        began = time.perf_counter()
        for digest in digests:
            get(digest)
        return _LOOK_UPS / (time.perf_counter() - began)

    return measure


_SPREAD = 0x9E3779B97F4A7C15


def _digest(number: int) -> bytes:
    return (number * _SPREAD % (1 << 64)).to_bytes(8, "little") + number.to_bytes(8, "little")


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[8:], "little")


if __name__ == "__main__":
    sys.exit(main())
