"""What becomes of batches that cannot go on, or not now; and of the others meanwhile."""

import asyncio
import errno
import os
import time
from typing import Any

import pytest
from msgspec.structs import replace

from batch_service import batch_service, line
from penstock.batch.job import execution
from penstock.batch.write import manifest as manifests
from penstock.batch.write.state_files import to_disk
from penstock.errors import (
    EngineStartError,
    JobHeldError,
    JobVersionError,
    OutputError,
    UnavailableError,
)
from penstock.serve.store.database import PRAGMAS
from penstock.service import runner
from penstock.service.batches import BatchStore
from penstock.service.content import LEFT_S, Content
from penstock.service.service import DATABASE
from penstock.service.webhooks import Webhooks

SLOW = {"time_per_token_ms": 20.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(runner, "AGAIN_S", 0.01)
    monkeypatch.setattr(runner, "PROGRESS_S", 0.01)


def given(many):
    return [line(str(number)) for number in range(many)]


async def test_a_batch_whose_file_went_can_be_cancelled(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_batches=1) as service:
        first = await service.submit([line("a", max_tokens=1000)])
        second = await service.submit(given(3))
        client = service.openai()
        await client.files.delete(second.input_file_id)
        await client.batches.cancel(second.id)
        ended = await service.ended(second.id)
        files = (ended.output_file_id, ended.error_file_id)
        assert (ended.status, *files) == ("cancelled", None, None)
        assert ended.cancelled_at is not None
        await client.batches.cancel(first.id)


async def test_a_batch_whose_file_cannot_be_had_ends_with_its_window(tmp_path, monkeypatch):
    async def away(*_):
        raise UnavailableError("the bucket is away")

    monkeypatch.setattr(Content, "fetch", away)
    async with batch_service(tmp_path) as service:
        batch = await service.submit(given(3), completion_window="1s")
        ended = await service.ended(batch.id)
        assert (ended.status, ended.expired_at >= ended.expires_at) == ("expired", True)


async def test_a_batch_whose_content_is_gone_fails(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_batches=1) as service:
        first = await service.submit([line("a", max_tokens=1000)])
        second = await service.submit(given(3))
        (tmp_path / "files" / second.input_file_id).unlink()
        await service.openai().batches.cancel(first.id)
        ended = await service.ended(second.id)
        assert ended.status == "failed"
        assert [one.code for one in ended.errors.data] == ["file_not_found"]


async def start_no_more(service, monkeypatch):
    """Have the engine start no more."""

    async def broken(request):
        raise EngineStartError("no GPU is free just now")
        yield

    monkeypatch.setattr(service.handles["sim"].server, "generate", broken)


async def test_a_batch_that_fails_keeps_its_answers(tmp_path, monkeypatch):
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(given(40))
        await service.under_way(batch.id)
        await start_no_more(service, monkeypatch)
        ended = await service.ended(batch.id)
        assert ended.status == "failed"
        assert "no GPU is free" in ended.errors.data[0].message
        answers, errors = [
            await service.read(id) for id in (ended.output_file_id, ended.error_file_id)
        ]
        counts = ended.request_counts
        assert (len(answers), len(errors)) == (counts.completed, counts.failed)
        assert (counts.completed > 0, counts.completed + counts.failed) == (True, 40)
        assert "before the batch failed" in errors[-1]["response"]["body"]["error"]["message"]
        assert not (tmp_path / "running" / batch.id).exists()


async def test_a_failed_batch_of_messages_keeps_its_answers(tmp_path, monkeypatch):
    body = {"model": "sim", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        client = service.anthropic()
        asked = [
            {"custom_id": str(number), "params": {**body, "system": str(number)}}
            for number in range(40)
        ]
        batch = await client.messages.batches.create(requests=asked)
        async with asyncio.timeout(60):
            while batch.processing_status != "ended":
                if batch.request_counts.succeeded:
                    await start_no_more(service, monkeypatch)
                await asyncio.sleep(0.01)
                batch = await client.messages.batches.retrieve(batch.id)
        results = [one async for one in await client.messages.batches.results(batch.id)]
        kinds = [one.result.type for one in results]
        counts = batch.request_counts
        assert kinds.count("succeeded") == counts.succeeded > 0
        assert kinds.count("errored") == counts.errored == 40 - counts.succeeded


def full():
    """The error of a disk without room, as the kernel has it."""
    return OSError(errno.ENOSPC, "No space left on device")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "why",
    [
        caused(OutputError("the results cannot be written"), full()),
        caused(
            OutputError("a part cannot be opened"), OSError(errno.EMFILE, "Too many open files")
        ),
        full(),
        JobHeldError("another process is running this job"),
        JobVersionError("manifest.json has version 3"),
    ],
)
async def test_a_batch_waits_for_a_full_disk_or_another_server(tmp_path, monkeypatch, why):
    real, errors = execution.execute, [why]

    async def execute(*args):
        if errors:
            raise errors.pop()
        return await real(*args)

    monkeypatch.setattr(runner, "execute", execute)
    async with batch_service(tmp_path) as service:
        ended = await service.ended((await service.submit(given(3))).id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 3)


async def test_a_batch_waits_for_room_for_its_answers(tmp_path, monkeypatch):
    real, errors = to_disk, [full()]

    def filling(file):
        if errors:
            raise errors.pop()
        real(file)

    monkeypatch.setattr("penstock.batch.write.text.to_disk", filling)
    async with batch_service(tmp_path) as service:
        ended = await service.ended((await service.submit(given(3))).id)
        assert (ended.status, ended.request_counts.completed, errors) == ("completed", 3, [])


async def test_a_batch_whose_answers_cannot_be_written_fails(tmp_path, monkeypatch):
    async def execute(*_):
        raise OutputError("output.jsonl: Read-only file system")

    monkeypatch.setattr(runner, "execute", execute)
    async with batch_service(tmp_path) as service:
        ended = await service.ended((await service.submit(given(3))).id)
        (fault,) = ended.errors.data
        assert (ended.status, fault.code) == ("failed", "output_error")
        assert "Read-only" in fault.message


@pytest.mark.parametrize(
    "why",
    [
        caused(OutputError("the results cannot be written"), full()),
        JobVersionError("manifest.json has version 3"),
    ],
)
async def test_a_batch_that_waits_can_be_cancelled(tmp_path, monkeypatch, why):
    tried = asyncio.Event()

    async def execute(*_):
        tried.set()
        raise why

    monkeypatch.setattr(runner, "execute", execute)
    async with batch_service(tmp_path) as service:
        batch = await service.submit(given(3))
        await tried.wait()
        await service.openai().batches.cancel(batch.id)
        assert (await service.ended(batch.id)).status == "cancelled"
        assert not (tmp_path / "running" / batch.id).exists()


async def test_a_batch_of_another_version_keeps_its_answers_until_it_is_over(tmp_path, monkeypatch):
    tried, whole = asyncio.Semaphore(0), manifests.load

    def load(folder):
        tried.release()
        raise JobVersionError(f"{folder}/manifest.json has version 3")

    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(given(12))
        await service.under_way(batch.id)
    folder = tmp_path / "running" / batch.id
    monkeypatch.setattr(manifests, "load", load)
    async with batch_service(tmp_path, engine=SLOW) as service:
        async with asyncio.timeout(30):
            for _ in range(3):  # a batch that failed would try it twice
                await tried.acquire()
        now = await service.openai().batches.retrieve(batch.id)
        assert (now.status, folder.exists()) == ("in_progress", True)
        assert now.request_counts.completed > 0
    monkeypatch.setattr(manifests, "load", whole)
    async with batch_service(tmp_path) as service:
        assert (await service.ended(batch.id)).request_counts.completed == 12


async def test_a_batch_whose_end_was_stored_unheard_is_told_of(tmp_path, monkeypatch):
    async with batch_service(tmp_path) as service:
        change, told, lost = BatchStore.change, [], []

        async def unheard(self, id, how):
            batch = await change(self, id, how)
            if batch.ended_at is not None:
                lost.append(id)
                raise UnavailableError("the connection broke at the commit")
            return batch

        monkeypatch.setattr(BatchStore, "change", unheard)
        monkeypatch.setattr(
            Webhooks, "tell", lambda _, batch: told.append((batch.id, batch.status))
        )
        batch = await service.submit(given(3))
        await service.ended(batch.id)
        assert (told, lost) == ([(batch.id, "completed")], [batch.id])
        assert not (tmp_path / "running" / batch.id).exists()


def let_age(*paths):
    for path in paths:
        long_ago = time.time() - LEFT_S - 1
        os.utime(path, (long_ago, long_ago))


async def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    async with batch_service(tmp_path / "file" / "below") as service, service.http() as client:
        reply = await client.get("/v1/batches")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert "Not a directory" in reply.json()["error"]["message"]


@pytest.mark.parametrize(("fault", "status"), [("a damaged file", 503), ("a full disk", 507)])
async def test_a_database_that_cannot_be_made_is_not_the_fault_of_the_client(
    tmp_path, monkeypatch, fault, status
):
    async with batch_service(tmp_path / "batches") as service, service.http() as client:
        if fault == "a full disk":  # a database of a page, which holds no table
            pragmas = (*PRAGMAS, "max_page_count = 1")
            monkeypatch.setattr("penstock.serve.store.database.PRAGMAS", pragmas)
        else:
            (tmp_path / "batches").mkdir(exist_ok=True)
            (tmp_path / "batches" / DATABASE).write_bytes(b"no database" * 100)
        reply = await client.get("/v1/batches")
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, "unavailable")


async def test_what_servers_that_died_left_is_deleted(tmp_path):
    async with batch_service(tmp_path, models=("other",)) as service:
        batch = await service.submit(given(3))  # it fails: its folder is gone
        await service.ended(batch.id)
        stores = service.service._stores
        running, incoming = tmp_path / "running", tmp_path / "incoming"
        names = ["batch_gone", "batch_new", "batch_runs"]
        folders = [running / name for name in names]
        uploads = [incoming / "upload-old", incoming / "upload-new"]
        for folder in folders:
            folder.mkdir()
            (folder / "input.jsonl").touch()
        for upload in uploads:
            upload.touch()
        let_age(*(folder / "input.jsonl" for folder in folders), *folders[::2], uploads[0])
        known = await stores.batches.get(None, batch.id)
        await stores.batches.add(replace(known, id="batch_runs", status="validating", model="sim"))
        stores.runner._swept = 0.0
        await stores.runner._sweep()
        assert sorted(one.name for one in running.iterdir()) == names[1:]
        assert [one.name for one in incoming.iterdir()] == ["upload-new"]


async def test_a_second_signal_does_not_wait_for_lines(tmp_path):
    async with batch_service(tmp_path, engine={"time_per_token_ms": 60_000.0}) as service:
        batch = await service.submit(given(3))
        async with asyncio.timeout(30):
            while not service.handles["sim"].state().running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        hurry = asyncio.Event()
        draining = asyncio.create_task(service.app.ingress.drain(3600.0, hurry))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not draining.done()
        hurry.set()
        async with asyncio.timeout(runner.DRAIN_S - 5):
            await draining
    async with batch_service(tmp_path) as service:
        assert (await service.ended(batch.id)).status == "completed"


@pytest.mark.parametrize("how", [("sleep", "wakeup"), ("pause", "resume")])
async def test_lines_that_wait_for_a_model_leave_room_for_others(tmp_path, how, monkeypatch):
    monkeypatch.setattr("penstock.service.lines.wait_after", lambda *_, **__: 0.01)
    halt, go_on = how
    async with batch_service(tmp_path, models=("sim", "other"), max_in_flight=2) as service:
        await service.handles["sim"].control(halt, {})
        waiting = await service.submit(given(8))
        other = await service.submit([line("x", model="other")])
        assert (await service.ended(other.id)).status == "completed"
        await service.handles["sim"].control(go_on, {})
        assert (await service.ended(waiting.id)).request_counts.completed == 8


async def test_lines_for_a_model_that_is_paused_while_it_loads_keep_no_slots(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.service.lines.wait_after", lambda *_, **__: 0.01)
    async with batch_service(tmp_path, models=("sim", "other"), max_in_flight=2) as service:
        handle: Any = service.handles["sim"]
        server = handle.server
        may_start, start = asyncio.Event(), server.engine.start

        async def slow():
            await may_start.wait()
            await start()

        monkeypatch.setattr(server.engine, "start", slow)
        await server.unload_model()
        await server.pause()
        server.supervisor.load()
        assert server.state().state == "loading"
        waiting = await service.submit(given(8))
        other = await service.submit([line("x", model="other")])
        assert (await service.ended(other.id)).status == "completed"
        may_start.set()
        await server.resume()
        assert (await service.ended(waiting.id)).request_counts.completed == 8


async def test_a_paused_batch_leaves_its_turn_to_others(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_batches=1, max_in_flight=2) as service:
        first = await service.submit(given(40))
        await service.under_way(first.id)
        async with service.http() as client:
            await client.post(f"/v1/batches/{first.id}/pause")
            second = await service.submit(given(3))
            assert (await service.ended(second.id)).status == "completed"
            third = await service.submit([line("a", max_tokens=1000)])
            await client.post(f"/v1/batches/{first.id}/resume")  # it is not its turn
            run = service.service._stores.runner._runs[first.id]
            await asyncio.sleep(0.05)
            assert not run._has_turn.is_set()
            await client.post(f"/v1/batches/{third.id}/cancel")
            assert (await service.ended(first.id)).request_counts.completed == 40


async def test_a_batch_that_is_tried_again_leaves_its_turn_to_others(tmp_path, monkeypatch):
    real, back, asked = Content.fetch, asyncio.Event(), []

    async def fetch(self, id, to):
        asked.append(id)
        if id == asked[0] and not back.is_set():
            raise UnavailableError("the bucket is away")
        await real(self, id, to)

    monkeypatch.setattr(Content, "fetch", fetch)
    async with batch_service(tmp_path, max_batches=1) as service:
        first = await service.submit(given(3))
        second = await service.submit(given(3))
        assert (await service.ended(second.id)).status == "completed"
        back.set()
        assert (await service.ended(first.id)).status == "completed"
