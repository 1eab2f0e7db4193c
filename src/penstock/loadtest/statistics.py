"""What the samples of a run say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median

from msgspec import Struct

from penstock.loadtest.client import Sample
from penstock.loadtest.study import Run


class Spread(Struct, frozen=True):
    """The mean, the percentiles and the maximum of times, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Targets(Struct, frozen=True):
    """What a good request keeps, in milliseconds; None: anything."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__struct_fields__)


class Summary(Struct, frozen=True, kw_only=True):
    """A run in numbers. `goodput` is requests a second that keep all targets; None without
    targets. `generator_cpu` is the share of one core that the load generator used, `lag` how late
    it sent.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    examples: dict[str, str]
    seconds: float
    requests_per_s: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    goodput: float | None
    good_share: float | None
    generator_cpu: float
    generator_us_per_piece: float
    lag_ms: Spread | None


def ttft(sample: Sample) -> float:
    """Time to the first token, in milliseconds."""
    return (sample.first - sample.due) * 1e3


def e2e(sample: Sample) -> float:
    """Time to the end of the answer, in milliseconds."""
    return (sample.end - sample.due) * 1e3


def tpot(sample: Sample) -> float | None:
    """Time per output token after the first, in milliseconds; None for answers of one token, and
    for those that came in one piece.
    """
    if sample.pieces < 2 or (tokens := _tokens(sample)) < 2:
        return None
    return (sample.last - sample.first) * 1e3 / (tokens - 1)


def summary(run: Run, targets: Targets | None = None) -> Summary:
    """The numbers of a run. Latencies are those of whole answers."""
    whole = [sample for sample in run.samples if sample.error is None]
    answered = [sample for sample in whole if sample.pieces]
    failed = [sample for sample in run.samples if sample.error is not None]
    tokens = sum(map(_tokens, whole))
    pieces = sum(sample.pieces for sample in run.samples)
    good = sum(_keeps(sample, targets) for sample in answered) if targets else None
    return Summary(
        requests=len(run.samples),
        failed=len(failed),
        errors=dict(Counter(str(sample.error) for sample in failed).most_common()),
        examples={str(sample.error): sample.why for sample in reversed(failed)},
        seconds=run.seconds,
        requests_per_s=len(whole) / run.seconds,
        input_tokens=sum(sample.input_tokens for sample in whole),
        output_tokens=tokens,
        output_tokens_per_s=tokens / run.seconds,
        ttft_ms=spread(map(ttft, answered)),
        tpot_ms=spread(time for time in map(tpot, answered) if time is not None),
        itl_ms=spread(gap * 1e3 for sample in answered for gap in sample.gaps),
        e2e_ms=spread(map(e2e, whole)),
        goodput=None if good is None else good / run.seconds,
        good_share=None if good is None else good / max(len(run.samples), 1),
        generator_cpu=run.cpu_seconds / run.seconds,
        generator_us_per_piece=run.cpu_seconds * 1e6 / max(pieces, 1),
        lag_ms=spread((sample.sent - sample.due) * 1e3 for sample in run.samples if sample.sent),
    )


def spread(times: Iterable[float]) -> Spread | None:
    """The distribution of these times; None if there are none."""
    ordered = sorted(times)
    if not ordered:
        return None
    quantiles = (quantile(ordered, share) for share in (0.5, 0.9, 0.99, 1))
    return Spread(fmean(ordered), *quantiles)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that is not exceeded by this share of the sorted values (nearest rank)."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]


class Ratio(Struct, frozen=True):
    """B over A, paired round by round: its median, least and greatest."""

    median: float
    least: float
    greatest: float


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio | None:
    """`second` over `first`, round by round; None where a round has no value."""
    if len(first) != len(second) or not all(first) or not first:
        return None
    found = [other / one for one, other in zip(first, second, strict=True)]
    return Ratio(median(found), min(found), max(found))


def knee(levels: Sequence[tuple[float, float]]) -> int:
    """The index of the knee among (throughput, latency) of growing load: where throughput over
    latency, the power of Kleinrock (1979), is greatest.
    """
    powers = [speed / latency if latency else 0.0 for speed, latency in levels]
    return powers.index(max(powers))


def _tokens(sample: Sample) -> int:
    """A server that does not count them gives about one in each piece."""
    return sample.output_tokens or sample.pieces


def _keeps(sample: Sample, targets: Targets) -> bool:
    pairs = (
        (ttft(sample), targets.ttft_ms),
        (tpot(sample), targets.tpot_ms),
        (e2e(sample), targets.e2e_ms),
    )
    return all(limit is None or time is None or time <= limit for time, limit in pairs)
