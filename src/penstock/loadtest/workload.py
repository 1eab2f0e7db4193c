"""Synthetic workloads: prompts of drawn lengths. Equal seeds make equal workloads."""

from __future__ import annotations

import csv
import io
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from penstock.errors import ConfigError, InputError

_WORDS = (
    *("the", "order", "came", "late", "and", "my", "note", "shows", "two"),
    *("of", "it", "so", "please", "look", "at", "this", "box", "once"),
    *("more", "when", "you", "have", "time", "for", "all", "that", "was"),
    *("left", "on", "the", "road", "by", "the", "man", "who", "has"),
    *("our", "key", "and", "his", "own", "car", "now", "we", "need"),
    *("a", "new", "one", "before", "long", "or", "else", "it", "will"),
    *("be", "hard", "to", "say", "what", "went", "wrong", "here"),
)
_MOST_TOKENS = 1_000_000


class Prompt(NamedTuple):
    """One request of a workload: its text, about how many tokens that is, and the most new
    tokens.
    """

    text: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Lognormal:
    """A lognormal number of tokens, at least 1 and at most `cap`; `mu` and `sigma` of its
    logarithm. A sigma of 0 gives the same number each time.
    """

    mu: float
    sigma: float
    cap: int = 8_192

    def draw(self, chance: random.Random) -> int:
        return max(1, min(self.cap, round(chance.lognormvariate(self.mu, self.sigma))))


@dataclass(frozen=True)
class Shape:
    """How prompts and answers of a workload are made. `prefixes` heads of `prefix_tokens` are
    shared; a share of `duplicates` repeats an earlier prompt; a share of `stragglers` asks for
    2,048 new tokens.
    """

    about: str
    input: Lognormal
    output: Lognormal
    prefixes: int = 0
    prefix_tokens: int = 0
    duplicates: float = 0.0
    stragglers: float = 0.0


STRAGGLER_TOKENS = 2_048

# Lognormal fits of the traces of Azure's LLM inference of 2023 (Patel et al., Splitwise, 2024),
# in tokens, and of GSM8K (Cobbe et al., 2021), in words.
SHAPES = {
    "conversation": Shape(
        "Azure 2023, conversations", Lognormal(6.63, 0.99), Lognormal(5.02, 0.86, 1_000)
    ),
    "code": Shape(
        "Azure 2023, code completion", Lognormal(7.00, 1.36, 7_437), Lognormal(2.79, 0.85)
    ),
    "gsm8k": Shape("short questions of GSM8K", Lognormal(3.74, 0.37), Lognormal(3.81, 0.54)),
    "shared-prefix": Shape(
        "256 shared and 256 own tokens, 128 new",
        Lognormal(math.log(256), 0),
        Lognormal(math.log(128), 0),
        prefixes=8,
        prefix_tokens=256,
    ),
    "stragglers": Shape(
        "98 % of 64 new tokens, 2 % of 2,048",
        Lognormal(math.log(64), 0),
        Lognormal(math.log(64), 0),
        stragglers=0.02,
    ),
    "duplicates": Shape(
        "half of the prompts repeat an earlier one",
        Lognormal(math.log(128), 0),
        Lognormal(math.log(64), 0),
        duplicates=0.5,
    ),
}


@dataclass(frozen=True)
class Workload:
    """What is asked. `input_tokens` and `output_tokens` stand in place of the drawn lengths;
    `max_input` and `max_output` cap them, as a small model needs it. Lengths of prompts include
    their prefix. `tokens_per_word` turns tokens into words: short English words are about one token
    each in large vocabularies; None: 1, or what is measured. Another `side` has the same lengths in
    other words.
    """

    shape: str = "conversation"
    seed: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    max_input: int | None = None
    max_output: int | None = None
    prefixes: int | None = None
    tokens_per_word: float | None = None
    side: str = ""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"there are {', '.join(SHAPES)}", field="workload", value=self.shape)
        if self.prefixes is not None and not SHAPES[self.shape].prefixes:
            raise ConfigError("only the workload shared-prefix has them", field="prefixes")
        prefix = SHAPES[self.shape].prefix_tokens
        for name in ("input_tokens", "max_input"):
            if (tokens := getattr(self, name)) is not None and tokens <= prefix:
                raise ConfigError(f"a prefix alone has {prefix} tokens", field=name, value=tokens)

    def prompts(self, count: int, *, part: str = "run") -> list[Prompt]:
        """So many prompts. Another `part`, such as the warm-up, has others."""
        chance = random.Random(f"{self.seed} {part}")
        return self._texts([self._lengths(chance) for _ in range(count)], part)

    def prompts_of(self, lengths: list[tuple[int, int]], *, part: str = "run") -> list[Prompt]:
        """A prompt for each pair of input and output tokens, as a trace has them."""
        capped = [
            (_capped(tokens, self.max_input), _capped(new, self.max_output))
            for tokens, new in lengths
        ]
        return self._texts(capped, part)

    def _lengths(self, chance: random.Random) -> tuple[int, int]:
        shape = SHAPES[self.shape]
        tokens = shape.prefix_tokens + shape.input.draw(chance)
        new = shape.output.draw(chance)
        if shape.stragglers and chance.random() < shape.stragglers:
            new = STRAGGLER_TOKENS
        return (
            _capped(self.input_tokens or tokens, self.max_input),
            _capped(self.output_tokens or new, self.max_output),
        )

    def _texts(self, lengths: list[tuple[int, int]], part: str) -> list[Prompt]:
        shape = SHAPES[self.shape]
        chance = random.Random(f"{self.seed} {part} order")
        words = random.Random(f"{self.seed} {part} words {self.side}")
        heads = random.Random(f"{self.seed} heads {self.side}")  # the warm-up's are the run's
        prefixes = [
            self._words(shape.prefix_tokens, heads) for _ in range(self.prefixes or shape.prefixes)
        ]
        prompts: list[Prompt] = []
        for tokens, new in lengths:
            if prompts and chance.random() < shape.duplicates:
                prompts.append(chance.choice(prompts))
                continue
            own = max(1, tokens - shape.prefix_tokens)
            text = self._words(own, words)
            if prefixes:
                text = f"{chance.choice(prefixes)} {text}"
            prompts.append(Prompt(text, own + shape.prefix_tokens, new))
        return prompts

    def _words(self, tokens: int, chance: random.Random) -> str:
        return " ".join(
            chance.choices(_WORDS, k=max(1, round(tokens / (self.tokens_per_word or 1))))
        )


_FEW_WORDS, _MANY_WORDS = len(_WORDS), 4 * len(_WORDS)


def calibration() -> list[Prompt]:
    """Two prompts whose lengths in tokens tell what a word is: they have each word equally often,
    so that no chance is in it.
    """
    return [
        Prompt(" ".join(_WORDS * (words // len(_WORDS))), words, 1)
        for words in (_FEW_WORDS, _MANY_WORDS)
    ]


def tokens_of_a_word(few: int, many: int) -> float:
    """The tokens of a word, from the lengths of the two prompts; 1 where they tell nothing."""
    found = (many - few) / (_MANY_WORDS - _FEW_WORDS)
    return found if found > 0 else 1.0


def body_of(
    prompt: Prompt, model: str, *, chat: bool = True, stream: bool = True, **more: Any
) -> dict[str, Any]:
    """The body of an OpenAI request for a prompt; `more` are further fields of it."""
    asked: dict[str, Any] = {"model": model, "max_tokens": prompt.output_tokens, "temperature": 0}
    if chat:
        asked["messages"] = [{"role": "user", "content": prompt.text}]
    else:
        asked["prompt"] = prompt.text
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked | more


class Trace(NamedTuple):
    """Arrivals of a recorded trace, in seconds from its start, each with its lengths in tokens."""

    times: list[float]
    lengths: list[tuple[int, int]]


def read_trace(path: Path, *, speed: float = 1.0, limit: int | None = None) -> Trace:
    """A trace from a file, `speed` times as fast.

    JSON lines have `timestamp` in seconds, `input_tokens` and `output_tokens`. CSV is in the form
    of the Azure traces: `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`. Raises `InputError`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _csv_rows(text) if path.suffix == ".csv" else _json_rows(text)
    except OSError as error:
        raise InputError(f"the trace {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"the trace {path} is not text in UTF-8") from None
    except _BadRow as error:
        raise InputError(f"the trace {path}, line {error.line}: {error.why}") from None
    if not rows:
        raise InputError(f"the trace {path} is empty")
    rows = sorted(rows)[:limit]
    start = rows[0][0]
    return Trace(
        [(time - start) / speed for time, _, _ in rows], [(tokens, new) for _, tokens, new in rows]
    )


class _BadRow(Exception):
    def __init__(self, line: int, why: str) -> None:
        self.line, self.why = line, why


def _json_rows(text: str) -> list[tuple[float, int, int]]:
    from penstock.parsing import decode_json

    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = decode_json(line)
        except ValueError as error:
            raise _BadRow(number, f"not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise _BadRow(number, "must be a JSON object")
        names = ("timestamp", "input_tokens", "output_tokens")
        rows.append(_row(number, [value.get(name) for name in names], names))
    return rows


def _csv_rows(text: str) -> list[tuple[float, int, int]]:
    from datetime import UTC, datetime

    names = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    rows = []
    table = csv.DictReader(io.StringIO(text))
    if text and not set(names) <= set(table.fieldnames or ()):
        raise _BadRow(1, f"needs the columns {', '.join(names)}")
    for number, value in enumerate(table, 2):
        time: Any = value.get(names[0])
        try:
            found = datetime.fromisoformat(str(time))  # digits beyond microseconds are dropped
            time = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            raise _BadRow(number, f"TIMESTAMP must be a time, not {time!r}") from None
        rows.append(_row(number, [time, value.get(names[1]), value.get(names[2])], names))
    return rows


def _row(number: int, values: list[Any], names: tuple[str, ...]) -> tuple[float, int, int]:
    found = []
    for name, value in zip(names, values, strict=True):
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            raise _BadRow(number, f"{name} must be a number, not {value!r}") from None
        if not 0 <= found[-1] < math.inf:
            raise _BadRow(number, f"{name} must be at least 0, not {value!r}")
    time, *tokens = found
    if max(tokens) > _MOST_TOKENS:
        raise _BadRow(number, f"more than {_MOST_TOKENS:,} tokens")
    return time, max(1, int(tokens[0])), max(1, int(tokens[1]))


def _capped(tokens: int, cap: int | None) -> int:
    return tokens if cap is None else min(tokens, cap)
