"""What a job does with its state folder and with the place of its output, and with those who meddle
with them.
"""

import os
import shutil
import stat
from pathlib import Path

import fsspec
import pytest

from jobs import ask, interrupted, lines, numbered, settled
from penstock.batch.write import manifest as manifests
from penstock.batch.write.manifest import Manifest
from penstock.batch.write.parts import Part
from penstock.batch.write.sinks import DurableSink
from penstock.batch.write.state import State
from penstock.batch.write.state_files import Records, remove, replace_file
from penstock.errors import EngineError, JobError, OutputError

pytestmark = pytest.mark.usefixtures("small_parts")


def failing(text):
    return EngineError("no") if text.endswith("7") else text.upper()


def names(folder):
    return {path.name for path in folder.iterdir()}


def manifest_of(state):
    found = manifests.load(state)
    assert found is not None
    return found


def damage(path):
    """Another answer in the place of one."""
    path.write_bytes(path.read_bytes().replace(b"TEXT 1", b"TEXT 2", 1))


def during_the_job(monkeypatch, act):
    """Do something when the first part is committed."""
    committed = DurableSink._committed

    def call(self, done):
        committed(self, done)
        act()

    monkeypatch.setattr(DurableSink, "_committed", call)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "out/"])
async def test_state_is_private_and_the_output_is_as_usual(
    source, tmp_path, make_engine, monkeypatch, name
):
    modes: dict[tuple[str, bool], int] = {}

    def look():
        for path in (state, *state.rglob("*")):
            modes[path.name, path.is_dir()] = stat.S_IMODE(path.stat().st_mode)

    state = tmp_path / f"{name.rstrip('/')}.penstock"
    state.mkdir(0o755)
    assemble = State._check_place
    monkeypatch.setattr(State, "_check_place", lambda self: (look(), assemble(self)))
    monkeypatch.setattr("penstock.batch.rows.dedupe._IN_MEMORY_BYTES", 500)
    during_the_job(monkeypatch, look)
    before = os.umask(0o002)
    try:
        await ask(
            source,
            f"{tmp_path}/{name}",
            make_engine(failing),
            dead_letter=tmp_path / "failed.jsonl",
        )
    finally:
        os.umask(before)
    look()
    assert {"answers.bin", "answers.sqlite", "failed.jsonl", "manifest.json", "lock"} <= {
        name for name, _ in modes
    }
    assert len(modes) > 8
    assert {mode for (_, folder), mode in modes.items() if folder} == {0o700}
    assert {mode for (_, folder), mode in modes.items() if not folder} == {0o600}
    for path in (tmp_path / "failed.jsonl", tmp_path / name, *(tmp_path / name).glob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o775 if path.is_dir() else 0o664)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out/", "failed.jsonl"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
async def test_what_appears_during_the_run_is_not_overwritten(
    source, tmp_path, make_engine, monkeypatch, name, kind
):
    place = tmp_path / name.rstrip("/")

    def appear():
        if os.path.lexists(place):
            return
        if kind == "file":
            place.write_text("mine")
        elif kind == "link":
            place.symlink_to("nowhere")
        else:
            place.mkdir()
            (place / "part-00000.parquet").write_text("mine")

    options = {"dead_letter": tmp_path / "failed.jsonl"}
    output = str(tmp_path / ("out.jsonl" if name == "failed.jsonl" else name)) + (
        "/" if name.endswith("/") else ""
    )
    with monkeypatch.context() as patch:
        during_the_job(patch, appear)
        with pytest.raises(OutputError, match=f"{place.name}.* has appeared .* Move it away"):
            await ask(source, output, make_engine(failing), **options)
    engine = make_engine(failing)
    with pytest.raises(OutputError, match="Move it away"):
        await ask(source, output, engine, **options)
    assert engine.starts == 0
    if kind == "file":
        assert place.read_text() == "mine"
        place.unlink()
    elif kind == "link":
        assert os.readlink(place) == "nowhere"
        place.unlink()
    else:
        assert [path.read_text() for path in place.iterdir()] == ["mine"]
        shutil.rmtree(place)
    engine = make_engine(failing)
    result = await ask(source, output, engine, **options)
    assert (result.counts.rows, engine.asked) == (300, [])
    assert len(lines(tmp_path / "failed.jsonl")) == 30


async def test_what_appears_at_the_last_moment_is_not_overwritten(
    source, tmp_path, make_engine, monkeypatch
):
    output = tmp_path / "out.jsonl"
    save = Manifest.save

    def appear(self, folder):
        save(self, folder)
        if self.status == "placing":
            output.write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", appear)
        with pytest.raises(OutputError, match="Move it away"):
            await ask(source, output, make_engine())
    assert output.read_text() == "mine"
    output.unlink()
    await ask(source, output, make_engine())
    assert len(lines(output)) == 300


async def test_an_output_that_changes_while_it_is_made_anew(
    source, tmp_path, make_engine, monkeypatch
):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine(failing))

    def edit():
        output.unlink()
        output.write_text("mine")

    for options in ({"retry_failed": True}, {"fresh": True}):
        with monkeypatch.context() as patch:
            during_the_job(patch, edit)
            with pytest.raises(OutputError, match="was changed since"):
                await ask(source, output, make_engine(), **options)
        assert output.read_text() == "mine"
        result = await ask(source, output, make_engine(), fresh=True)
        assert result.counts.ok == 300
        shutil.rmtree(f"{output}.penstock")
        await ask(source, output, make_engine(failing), fresh=True)


async def test_an_output_that_is_edited_where_it_stands_while_failed_rows_are_retried(
    source, tmp_path, make_engine, monkeypatch
):
    output = tmp_path / "out.jsonl"
    await ask(source, output, make_engine(failing))
    with monkeypatch.context() as patch:
        during_the_job(patch, lambda: output.write_text("mine"))
        with pytest.raises(
            (JobError, OutputError), match=r"base-1\.jsonl is damaged or was changed.*--fresh"
        ):
            await ask(source, output, make_engine(), retry_failed=True)
    assert output.read_text() == "mine"
    with pytest.raises(OutputError, match="was changed since"):
        await ask(source, output, make_engine())


async def test_a_file_at_a_url_that_appears_is_not_overwritten(
    source, tmp_path, make_engine, monkeypatch
):
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    url = f"memory://{tmp_path.name}/out.jsonl"
    with monkeypatch.context() as patch:
        during_the_job(patch, lambda: fsspec.filesystem("memory").pipe(url, b"mine"))
        with pytest.raises(OutputError, match="Move it away"):
            await ask(source, url, make_engine())
    assert fsspec.filesystem("memory").cat(url) == b"mine"
    fsspec.filesystem("memory").rm(url)
    assert (await ask(source, url, make_engine())).counts.ok == 300


@pytest.mark.parametrize("what", ["lock", "folder", "another"])
async def test_a_run_whose_state_is_taken_away_ends(
    source, tmp_path, make_engine, monkeypatch, what
):
    output = tmp_path / "out.jsonl"
    state = Path(f"{output}.penstock")

    def take():
        if what == "lock":
            (state / "lock").unlink()
            return
        shutil.rmtree(state)
        if what == "another":
            state.mkdir()
            (state / "lock").touch()

    with monkeypatch.context() as patch:
        during_the_job(patch, take)
        with pytest.raises(OutputError, match="removed or replaced while the job ran"):
            await ask(source, output, make_engine())
    assert not output.exists()
    if what == "another":
        assert names(state) == {"lock"}
    assert (await ask(source, output, make_engine())).counts.ok == 300
    assert [row["id"] for row in lines(output)] == list(range(300))


async def test_parts_with_rows_in_common_are_refused(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 200)
    state = Path(f"{output}.penstock")
    records = Records(state / "parts-0.jsonl", manifest_of(state).key)
    parts = [*records.read(), b'{"file":"part-0-0.jsonl","runs":[[39,80]]}']
    records = Records(records.path, manifest_of(state).key)
    replace_file(records.path, b"".join(map(records.seal, parts)))
    with pytest.raises(
        JobError, match=r"parts-0\.jsonl is damaged: some rows are in two parts.*--fresh"
    ):
        await ask(source, output, make_engine())


async def test_a_damaged_part_is_told_and_its_rows_run_again(source, tmp_path, make_engine, caplog):
    whole = await ask(source, tmp_path / "whole.jsonl", make_engine())
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 200)
    part = Path(f"{output}.penstock/part-0-0.jsonl")
    damage(part)
    rows = len(lines(part))
    engine = make_engine()
    result = await ask(source, output, engine)
    assert [record.message for record in caplog.records] == [
        f"{part} is damaged; its {rows} rows run again"
    ]
    assert {f"text {number}" for number in range(rows)} <= set(engine.asked)
    assert settled(result.rows()) == settled(whole.rows())


async def test_a_part_that_is_damaged_during_the_run_is_not_put_together(
    source, tmp_path, make_engine, monkeypatch
):
    output = tmp_path / "out.jsonl"
    part = Path(f"{output}.penstock/part-0-0.jsonl")
    with monkeypatch.context() as patch:
        during_the_job(patch, lambda: damage(part))
        with pytest.raises(JobError, match=r"part-0-0\.jsonl is damaged\. Start the job again"):
            await ask(source, output, make_engine())
    assert not output.exists()
    await ask(source, output, make_engine())
    assert [row["response"] for row in lines(output)] == [f"TEXT {number}" for number in range(300)]


async def test_state_of_another_version_and_without_manifest(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await interrupted(source, output, make_engine(), 200)
    state = Path(f"{output}.penstock")
    manifest = manifest_of(state)
    manifest.version = 1
    manifest.save(state)
    with pytest.raises(
        JobError, match=r"manifest\.json has version 1, .* reads version 2: finish .*--fresh"
    ):
        await ask(source, output, make_engine())
    remove(state / "manifest.json")
    with pytest.raises(JobError, match=r"holds .* and no manifest\.json.*--fresh"):
        await ask(source, output, make_engine())
    assert (await ask(source, output, make_engine(), fresh=True)).counts.ok == 300


async def test_a_copy_of_a_finished_job_can_be_retried(source, tmp_path, make_engine):
    """Its times of change are others, and its content is the same."""
    output, copy = tmp_path / "out.jsonl", tmp_path / "copy" / "out.jsonl"
    await ask(source, output, make_engine(failing))
    copy.parent.mkdir()
    shutil.copyfile(output, copy)
    shutil.copytree(f"{output}.penstock", f"{copy}.penstock", copy_function=shutil.copyfile)
    engine = make_engine()
    assert (await ask(source, copy, engine, retry_failed=True)).counts.ok == 300
    assert len(engine.asked) == 30


async def test_a_complete_job_cleans_up_after_a_kill(tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    await ask(numbered(5), output, make_engine())
    state = Path(f"{output}.penstock")
    for name in (
        "part-0-0.jsonl",
        "rows-0-0.jsonl",
        "base-1.jsonl",
        "answers.bin",
        "final.jsonl",
        "x.tmp",
    ):
        (state / name).touch()
    (state / "base-2").mkdir()
    (state / "notes.txt").touch()
    await ask(numbered(5), output, make_engine())
    assert names(state) == {*("manifest.json", "lock", "parts-0.jsonl", "notes.txt", "status.json")}


def test_a_part_tells_its_rows():
    assert Part("part-0-0.jsonl", [(0, 4), (6, 7)]).rows == 5
