"""State folders that somebody or something has damaged: each is refused by name, or resumed
exactly.
"""

import asyncio
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

import penstock
from damage import mutate
from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.write import sinks
from penstock.batch.write.outputs import Output
from penstock.batch.write.state import State
from penstock.errors import ConfigError, JobError, OutputError, PenstockError

ROWS = 300
FORMS = ("jsonl", "csv", "parquet")
STAGES = ("running", "not assembled", "not placed", "finished", "failed", "retrying")


async def run(source, output, **options):
    return await penstock.arun(
        source,
        output,
        engine="simulated",
        engine_kwargs={"max_num_seqs": 8, "error_rate": 0.05},
        prompt="{text}",
        progress=False,
        max_attempts=1,
        **options,
    )


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    make_exact(monkeypatch)


def make_exact(patch):
    """Several parts, a spill file, and nothing in the output that differs between two runs."""
    patch.setattr(sinks, "PART_ROWS", 40)
    patch.setattr("penstock.batch.pipeline.pipeline.LONGEST_PAUSE", 0.0)
    patch.setattr(
        "penstock.batch.pipeline.pipeline.time", SimpleNamespace(perf_counter_ns=lambda: 0)
    )
    patch.setattr(AnswerCache.__init__, "__kwdefaults__", {"in_memory": 16, "key": 0})
    patch.setattr(asyncio.BaseEventLoop, "run_in_executor", at_once)


def at_once(loop, executor, function, *args):
    """In the place of a thread, so that parts are committed at the same rows each time."""
    done = loop.create_future()
    try:
        done.set_result(function(*args))
    except Exception as error:
        done.set_exception(error)
    return done


class Stopped(PenstockError):
    """What ends a job where a test wants its state."""


def stopping(patch, where, name):
    def call(*args, **kwargs):
        raise Stopped("here")

    patch.setattr(where, name, call)


async def make_stage(folder, stage, form):
    """A job's folder as a kill at this stage leaves it."""
    folder.mkdir(parents=True)
    source, output = folder.parent.parent / "in.jsonl", folder / f"out.{form}"
    saved = folder / "saved"
    put, committed = sinks.DurableSink.put, sinks.DurableSink._committed
    calls = [0]

    def stop(sink, after):
        calls[0] += 1
        if calls[0] == after:
            sink._journal.flush()
            shutil.copytree(f"{output}.penstock", saved, ignore=shutil.ignore_patterns("*.sock"))
            sink.fail(Stopped("here"))

    def put_until_8(self, *args, **kwargs):
        stop(self, 8)
        return put(self, *args, **kwargs)

    def committed_until_3(self, done):
        committed(self, done)
        stop(self, 3)

    if stage == "retrying":
        await run(source, output)
    retry = stage == "retrying"
    with pytest.MonkeyPatch.context() as patch:
        if stage == "running":
            patch.setattr(sinks.DurableSink, "_committed", committed_until_3)
        if stage == "retrying":
            patch.setattr(sinks.DurableSink, "put", put_until_8)
        if stage == "not assembled":
            stopping(patch, State, "publish")
        if stage == "not placed":
            stopping(patch, Output, "place")
        if stage in ("finished", "failed"):
            await run(source, output)
        else:
            with pytest.raises(Stopped):
                await run(source, output, retry_failed=retry)
    if saved.exists():
        shutil.rmtree(f"{output}.penstock")
        saved.rename(f"{output}.penstock")
    return output


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folders by stage and form, each made when it is first asked for, and the content of the
    outputs.
    """
    root = tmp_path_factory.mktemp("stages")
    rows = [{"id": n, "text": f"text {n % 120}"} for n in range(ROWS)]
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}

    def stage(name, form):
        if (name, form) not in made:
            with pytest.MonkeyPatch.context() as patch:
                make_exact(patch)
                made[name, form] = asyncio.run(make_stage(root / name / form, name, form))
        return made[name, form]

    return stage


def content(output):
    return pq.read_table(output).to_pylist() if output.suffix == ".parquet" else output.read_bytes()


def attempt(stages, tmp_path, stage, form, seed):
    """Damage a copy of a stage and go on. Returns what was done, and whether it was refused. Seed
    None: no damage.
    """
    draw = random.Random(seed)
    source = stages("finished", form).parent.parent.parent / "in.jsonl"
    whole = content(stages("finished", form))
    home = tmp_path / f"{seed}"
    shutil.copytree(stages(stage, form).parent, home)
    output = home / f"out.{form}"
    other = Path(f"{stages(draw.choice(STAGES), draw.choice(FORMS))}.penstock")
    done = "nothing" if seed is None else mutate(Path(f"{output}.penstock"), other, draw)
    refusal = None
    try:
        asyncio.run(run(source, output, retry_failed=stage == "failed"))
    except (ConfigError, JobError, OutputError) as error:
        refusal = str(error)
    if refusal is None:
        assert asyncio.run(run(source, output)).already_complete, done
    else:
        assert seed is not None, refusal
        assert f"{output}" in refusal, (done, refusal)
        assert "--fresh" in refusal or "again" in refusal, (done, refusal)
        asyncio.run(run(source, output, fresh=True))
    assert content(output) == whole, (stage, form, done)
    left = {path.name for path in Path(f"{output}.penstock").iterdir()}
    names = {"manifest.json", "lock", "status.json"}
    assert {
        name for name in left if name not in names and not name.startswith("parts-")
    } == set(), done
    shutil.rmtree(home)
    return done, refusal is not None


@pytest.mark.parametrize("stage", STAGES)
def test_damaged_state_is_refused_or_resumed_exactly(stages, tmp_path, stage):
    for seed in (None, 1, 2):
        attempt(stages, tmp_path, stage, FORMS[STAGES.index(stage) % 3], seed)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stage", STAGES)
def test_three_hundred_damaged_states(stages, tmp_path, stage, form):
    first = 1000 * STAGES.index(stage) + 100 * FORMS.index(form)
    found = [
        attempt(stages, tmp_path, stage, form, seed) for seed in (None, *range(first, first + 17))
    ]
    print(
        f"\n{stage}, {form}:",
        *(f"{'refused' if refused else 'resumed'}: {done}" for done, refused in found),
        sep="\n  ",
    )
