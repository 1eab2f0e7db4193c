"""Looks at a job before it runs: reads its rows, asks for a few of them, and predicts the whole."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, field

from penstock.balance.backoff import span
from penstock.batch.job.plan import Plan
from penstock.batch.job.policy import Limits
from penstock.batch.job.result import Counts
from penstock.batch.pipeline.pipeline import Pipeline
from penstock.batch.read.sources import read_ahead
from penstock.batch.rows.intake import prepare
from penstock.batch.rows.repair import Request
from penstock.batch.rows.row import Row
from penstock.batch.write.journal import digest_key
from penstock.batch.write.kept import INDEX, Kept
from penstock.batch.write.outputs import Output
from penstock.batch.write.state import earlier_answers
from penstock.engines.base import LLMEngine
from penstock.errors import ConfigError, PenstockError, UnsupportedError
from penstock.observability import counted
from penstock.types import ChatRequest

TRIAL = 64
"""Rows that are asked before a deadline is accepted: about as many as a server is asked at once."""
READ_ROWS = 200_000
_READ_SECONDS = 20.0
MOST_TRIED = 256


class Forecast(Struct, kw_only=True):
    """What a job will be like.

    `rows` is the number of rows; None if not all were read and the data does not say. `read` rows
    were read. Some of them are never asked: `unreadable` rows, by kind of error; `kept` rows, whose
    answer an incremental job has; `duplicates`, rows with the same request as an earlier row.

    The rest is estimated. `counted` rows had their tokens counted, `tried` rows were asked, and of
    those `failed` failed, by kind of error. `over_long` rows do not fit the model. `prompt_tokens`
    and `completion_tokens` are what the whole job will compute: nothing for rows that fail, and for
    a prompt that is cut only what fits. `seconds` is the time of the whole job at the speed of the
    tried rows; None if no row was tried or all of them failed.
    """

    rows: int | None
    read: int
    unreadable: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    duplicates: int = 0
    counted: int = 0
    tried: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    over_long: int | None = None
    longest_prompt: int | None = None
    context_length: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None


class PromptLength(NamedTuple):
    """Numbers of tokens: `tokens` of the prompt, `answer` that the answer needs at most (1 without
    a limit), `context` that the model takes of both. `shortened`: a prompt that is too long is cut
    until it fits.
    """

    tokens: int
    answer: int
    context: int
    shortened: bool = False

    @property
    def is_over_long(self) -> bool:
        """Whether the model refuses it as it is."""
        return self.tokens + self.answer > self.context

    @property
    def computed(self) -> int:
        """The tokens that the model will compute, at most."""
        if not self.is_over_long:
            return self.tokens
        return max(self.context - self.answer, 0) if self.shortened else 0


async def forecast(plan: Plan, trial: int) -> Forecast:
    """The forecast of a checked job, after asking for `trial` rows. Raises what the job would."""
    found = Forecast(rows=plan.total, read=0)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        kept = await _kept(plan, Path(folder, INDEX))
        with contextlib.ExitStack() as files:
            if kept is not None:
                files.callback(kept.close)
            sample, complete = await _read(plan, found, kept)
    # The first rows of the sample are tried, and the data may be sorted by length.
    random.Random(0).shuffle(sample)
    if complete:
        found.rows = found.read
    counts = Counts()
    async with plan.pipeline(counts).running() as pipeline:
        await _count_tokens(pipeline, sample, found)
        await _try(plan, pipeline, sample[:trial], found)
    return found


async def _kept(plan: Plan, index: Path) -> Kept | None:
    """The answers that an incremental job has already; None for other jobs."""
    keys, output = plan.extras.keys, plan.output
    if keys is None:
        return None
    assert isinstance(output, Output)
    await keys.check(plan.source, plan.limit)
    if plan.fresh:
        return None
    return await asyncio.to_thread(
        earlier_answers, output, plan.identity, index, failed=not plan.retry_failed
    )


async def _read(plan: Plan, found: Forecast, kept: Kept | None = None) -> tuple[list[Row], bool]:
    """Read and prepare rows. Returns a sample of those to be asked, and whether all were read."""
    keys, columns = plan.extras.keys, plan.form.columns
    if keys is not None and columns is not None:
        columns = (*columns, keys.column)
    draw = random.Random(0)
    sample: list[Row] = []
    seen: set[bytes] = set()
    good = 0
    began = time.monotonic()
    async with contextlib.aclosing(read_ahead(plan.source, 0, plan.limit, columns)) as batches:
        async for batch in batches:
            async for rows in plan.form.ready(batch):
                for row in rows:
                    found.read += 1
                    failed = prepare(plan.form, row)
                    if failed is not None:
                        assert failed.error is not None
                        kind = failed.error.type
                        found.unreadable[kind] = found.unreadable.get(kind, 0) + 1
                        continue
                    if keys is not None and kept is not None:
                        keys.mark(row)
                        if kept.get(row.key, digest_key(row.digest)) is not None:
                            found.kept += 1
                            continue
                    if row.shareable and row.digest in seen:
                        found.duplicates += 1
                        continue
                    seen.add(row.digest)
                    good += 1
                    if len(sample) < MOST_TRIED:
                        sample.append(row)
                    elif (place := draw.randrange(good)) < MOST_TRIED:
                        sample[place] = row
            if found.read >= READ_ROWS or time.monotonic() - began > _READ_SECONDS:
                return sample, False
    return sample, True


async def _count_tokens(pipeline: Pipeline, sample: list[Row], found: Forecast) -> None:
    """Count the tokens of the sample's prompts, if these are known and the engine's template and
    tokenizer are at hand.
    """
    lengths: list[PromptLength] = []
    for row in sample:
        try:
            length = await prompt_length(pipeline, row)
        except PenstockError:  # the row fails, as its trial will show
            continue
        if length is None:
            return
        lengths.append(length)
    if not lengths:
        return
    distinct = _distinct(found)
    found.context_length = lengths[0].context
    found.counted = len(lengths)
    found.longest_prompt = max(length.tokens for length in lengths)
    found.over_long = round(
        distinct * sum(length.is_over_long for length in lengths) / len(lengths)
    )
    found.prompt_tokens = round(
        distinct * sum(length.computed for length in lengths) / len(lengths)
    )


async def _try(plan: Plan, pipeline: Pipeline, sample: list[Row], found: Forecast) -> None:
    """Ask for some rows, as many at a time as the job would, and see how long it takes."""
    if not sample:
        return
    slots = asyncio.Semaphore(max(pipeline.most_in_flight, 1))

    async def ask(row: Row) -> Any:
        async with slots:
            try:
                async with asyncio.timeout(plan.row_timeout):
                    return await pipeline.outcome(row)
            except TimeoutError:
                return None

    await ask(sample[0])  # not measured: it waits for what is made on first use
    began = time.perf_counter()
    outcomes = await asyncio.gather(*(ask(row) for row in sample))
    took = max(time.perf_counter() - began, 1e-6)
    usages = [
        outcome.usage for outcome in outcomes if outcome is not None and outcome.usage is not None
    ]
    for outcome in outcomes:
        if outcome is None or outcome.error is not None:
            kind = outcome.error.type if outcome is not None else "engine_timeout"
            found.failed[kind] = found.failed.get(kind, 0) + 1
    distinct = _distinct(found)
    found.tried = len(outcomes)
    if sum(found.failed.values()) == len(outcomes):
        return  # the time in which rows fail does not predict the job's
    found.rows_per_second = len(outcomes) / took
    found.seconds = distinct / found.rows_per_second
    if usages:
        completed = sum(usage.completion_tokens for usage in usages)
        found.tokens_per_second = completed / took
        found.completion_tokens = round(distinct * completed / len(outcomes))
        if found.prompt_tokens is None:
            found.prompt_tokens = round(
                distinct * sum(usage.prompt_tokens for usage in usages) / len(outcomes)
            )


def _distinct(found: Forecast) -> int:
    """How many rows will be asked, if bad, kept and duplicate rows are as frequent as among the
    rows that were read.
    """
    if not found.read:
        return 0
    asked = found.read - found.kept - found.duplicates - sum(found.unreadable.values())
    return math.ceil((found.rows if found.rows is not None else found.read) * asked / found.read)


def check_deadline(found: Forecast, limits: Limits) -> None:
    """Raise `ConfigError` if the job would take longer than its limit of time."""
    left = limits.seconds
    if found.seconds is None or left is None or found.seconds <= left:
        return
    raise ConfigError(
        f"the job would take about {span(found.seconds)} ({found.rows_per_second:,.1f} rows/s,"
        f" as {counted(found.tried, 'row')} showed), and {span(max(left, 0.0))} are left. Give it"
        " more time, or less to do (limit)",
        field="deadline",
    )


def described(found: Forecast) -> str:
    """The forecast for people, one finding per line."""
    whole = "" if found.rows == found.read else f", {found.read:,} of them read"
    least = "at least " if found.rows is None else ""
    out = "" if found.completion_tokens is None else f", {found.completion_tokens:,} out"
    rate = found.tokens_per_second
    tokens = "" if rate is None else f", {rate:,.0f} tokens/s"
    lines = (
        f"{least}{counted(found.rows or found.read, 'row')}{whole}",
        *(
            f"  {number:,} × {kind}: error rows, never asked"
            for kind, number in sorted(found.unreadable.items())
        ),
        f"  {found.kept:,} have their answers already, which are kept" if found.kept else "",
        f"  {found.duplicates:,} with the request of another row, asked once"
        if found.duplicates
        else "",
        f"  about {found.over_long:,} too long for the model's context of"
        f" {found.context_length:,} tokens (longest prompt seen: {found.longest_prompt:,})"
        if found.over_long
        else "",
        "" if found.prompt_tokens is None else f"about {found.prompt_tokens:,} tokens in{out}",
        ""
        if found.seconds is None
        else f"about {span(found.seconds)} ({found.rows_per_second:,.1f} rows/s{tokens}, as"
        f" {counted(found.tried, 'row')} showed)",
        *(
            f"  {number:,} × {kind} among the rows tried"
            for kind, number in sorted(found.failed.items())
        ),
    )
    return "\n".join(filter(None, lines))


async def prompt_length(pipeline: Pipeline, row: Row) -> PromptLength | None:
    """The prompt length of a prepared row. None if what is asked is not known yet, or if the engine
    cannot count tokens. Raises `PenstockError` for a row that cannot be asked.
    """
    asked = pipeline.step.asked(row)
    if asked is None or (tokens := await _tokens(asked.engine, asked.request)) is None:
        return None
    answer = asked.request.sampling.max_tokens or 1
    return PromptLength(
        tokens, answer, asked.engine.capabilities.context_length, shortened=asked.repair.truncate
    )


async def _tokens(engine: LLMEngine, request: Request) -> int | None:
    """How many tokens a prompt has; None if the engine cannot count them."""
    from penstock.engines.token_engine import TokenEngine  # late: it loads Jinja

    if not isinstance(engine, TokenEngine):
        try:
            ids = await engine.prompt_ids(request)
        except UnsupportedError:
            return None
        return len(ids) if ids is not None else None
    if isinstance(request, ChatRequest):
        text: str | list[int] = engine.template.prompt(request)
    else:
        text = request.prompt
    return len(await engine.tokenize(text)) if isinstance(text, str) else len(text)
