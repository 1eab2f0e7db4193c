"""OpenAI's client, its batches from the file of lines to the files of answers and errors."""

import asyncio
import gzip
import json

import msgspec
import openai
import pytest
from msgspec.structs import replace

from batch_service import batch_service, line, lines
from penstock.batch.monitor.status import known_folders
from penstock.errors import UnavailableError
from penstock.service import runner
from penstock.service.batches import BatchStore, batch_of

SLOW = {"time_per_token_ms": 20.0}


@pytest.fixture
async def service(tmp_path):
    async with batch_service(tmp_path) as made:
        yield made


async def test_a_batch_from_its_file_to_its_answers(service):
    batch = await service.submit(
        [line("a"), line("b", max_tokens=-1), line("c")], metadata={"name": "first"}
    )
    assert batch.status in ("validating", "in_progress")
    batch = await service.ended(batch.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    assert batch.metadata == {"name": "first"}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert (batch.failed_at, batch.expired_at, batch.cancelled_at) == (None, None, None)
    assert batch.expires_at == batch.created_at + 86400
    assert batch.usage.output_tokens == 8
    counted = (await service.app.ingress.metrics.render()).decode()
    assert 'penstock_generation_tokens_total{model_name="sim"} 8.0' in counted
    assert batch.usage.total_tokens == batch.usage.input_tokens + 8
    answers, errors = (
        await service.read(batch.output_file_id),
        await service.read(batch.error_file_id),
    )
    assert [one["custom_id"] for one in answers] == ["a", "c"]
    assert answers[0]["response"]["body"]["object"] == "chat.completion"
    assert answers[0]["response"]["body"]["created"] == batch.created_at
    (error,) = errors
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["param"] == "max_tokens"
    client = service.openai()
    assert (await client.files.retrieve(batch.output_file_id)).purpose == "batch_output"
    async with asyncio.timeout(60):  # the folder goes after the batch has said that it ended
        while any((service.service.folder / "running").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_request_gets_what_it_gets_online(service):
    asked = line("a", temperature=0, max_tokens=9)
    online = await service.openai().chat.completions.create(**asked["body"])
    batch = await service.ended((await service.submit([asked])).id)
    (answer,) = await service.read(batch.output_file_id)
    body = answer["response"]["body"]
    assert body["choices"] == json.loads(online.to_json())["choices"]
    assert body["model"] == online.model == "sim"


async def test_a_line_cannot_stream(service):
    streamed = line("b", stream=True)
    batch = await service.ended((await service.submit([line("a", stream=False), streamed])).id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (error,) = await service.read(batch.error_file_id)
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["param"] == "stream"


URGENT = {"type": "predicate", "name": "urgent", "instructions": "Urgent?"}


@pytest.mark.parametrize(
    ("url", "body", "key"),
    [
        ("/v1/completions", {"prompt": "x"}, "choices"),
        ("/v1/embeddings", {"input": ["x", "y"]}, "data"),
        ("/v1/responses", {"input": "x"}, "output"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}, "role"),
        ("/v1/decisions", {"input": "x", "questions": [URGENT]}, "answers"),
        ("/v1/score", {"text_1": "x", "text_2": ["y", "z"]}, "data"),
        ("/v1/rerank", {"query": "x", "documents": ["y", "z"]}, "results"),
        ("/classify", {"input": "x", "labels": ["a", "b"]}, "data"),
    ],
)
async def test_every_endpoint_takes_lines(service, url, body, key):
    asked = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "sim", **body}}
    batch = await service.ended((await service.submit([asked], endpoint=url)).id)
    assert batch.status == "completed", batch
    (answer,) = await service.read(batch.output_file_id)
    async with service.http() as client:
        online = (await client.post(url, json=asked["body"])).json()
    assert answer["response"]["body"].keys() == online.keys()
    assert key in online
    assert batch.usage.input_tokens > 0


HOSTILE = {
    "invalid_json_line": b'{"custom_id": "b"',
    "bad_utf8": b'{"custom_id": "\xff"}',
    "no_object": b"[1]",
    "beside_the_fields": lines([line("b")]).strip()[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    "duplicate_custom_id": line("a"),
    "duplicate_key": lines([line("b")]).replace(
        b'"max_tokens": 4', b'"max_tokens": 4, "max_tokens": 9'
    ),
    "twice_in_the_line": lines([line("b")]).replace(b'"method"', b'"body": {}, "method"'),
    "missing_required_parameter": {**line("b"), "custom_id": ""},
    "unknown_parameter": {**line("b"), "colour": "blue"},
    "invalid_custom_id": {**line("b"), "custom_id": ["../x"]},
    "invalid_method": {**line("b"), "method": "GET"},
    "invalid_url": {**line("b"), "url": "/v1/nothing"},
    "mixed": {**line("b"), "url": "/v1/embeddings"},
    "invalid_body": {**line("b"), "body": "x"},
    "mismatched_model": line("b", model="another"),
}
CODES = {
    "bad_utf8": "invalid_json_line",
    "twice_in_the_line": "duplicate_key",
    "no_object": "invalid_json_line",
    "beside_the_fields": "invalid_json_line",
    "mixed": "invalid_url",
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_wrong_line_fails_the_batch_with_its_number(service, kind):
    batch = await service.ended((await service.submit([line("a"), b"", HOSTILE[kind]])).id)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.failed_at is not None
    (error,) = batch.errors.data
    assert (error.code, error.line) == (CODES.get(kind, kind), 3)
    assert error.message


async def test_files_that_are_no_batch(tmp_path):
    async with batch_service(tmp_path, max_lines=2) as service:
        for given, code in (
            ([line(str(number)) for number in range(3)], "too_many_requests"),
            ([b"", b" "], "empty_file"),
            ([line("a", model="nothing")], "model_not_found"),
            ([gzip.compress(lines([line("a")]))], "invalid_file"),
            ([lines([line("a")]).decode().encode("utf-16")], "invalid_file"),
        ):
            batch = await service.ended((await service.submit(given)).id)
            assert [error.code for error in batch.errors.data] == [code]


async def test_what_no_batch_is_made_of(service):
    client = service.openai()
    file = await client.files.create(file=("in.jsonl", lines([line("a")])), purpose="batch")
    good = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for wrong, param in (
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "99999999d"}, "completion_window"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 0}}, "output_expires_after"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(input_file_id=file.id, **{**good, **wrong})
        assert str(refused.value.param).startswith(param)
    with pytest.raises(openai.NotFoundError) as missing:
        await client.batches.create(input_file_id="file-../../etc/passwd", **good)
    assert missing.value.param == "input_file_id"
    with pytest.raises(openai.NotFoundError):
        await client.batches.retrieve("batch_nothing")


async def test_cancelling_keeps_what_was_answered(tmp_path):
    async with batch_service(tmp_path, engine={**SLOW, "max_num_seqs": 2}) as service:
        batch = await service.submit([line(str(number), max_tokens=5) for number in range(500)])
        client = service.openai()
        async with asyncio.timeout(30):
            while (await client.batches.retrieve(batch.id)).request_counts.completed < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await service.ended(batch.id)
        assert batch.status == "cancelled"
        assert batch.cancelling_at <= batch.cancelled_at
        done, left = (
            await service.read(batch.output_file_id),
            await service.read(batch.error_file_id),
        )
        assert len(done) == batch.request_counts.completed >= 2
        assert len(done) + len(left) == 500
        assert {one["error"]["code"] for one in left} == {"batch_cancelled"}
        assert batch.request_counts.failed == 0
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)


async def test_a_batch_expires(tmp_path):
    async with batch_service(tmp_path, engine={**SLOW, "max_num_seqs": 1}) as service:
        given = [line(str(number), max_tokens=20) for number in range(50)]
        batch = await service.submit(given, completion_window="1s")
        batch = await service.ended(batch.id)
        left = await service.read(batch.error_file_id)
        assert batch.status == "expired"
        assert batch.expired_at >= batch.expires_at
        assert {one["error"]["code"] for one in left} == {"batch_expired"}
        assert {one["response"] for one in left} == {None}
        assert batch.request_counts.completed + len(left) == 50


async def test_pages_of_batches(service):
    ids = [(await service.submit([line("a")])).id for _ in range(3)]
    client = service.openai()
    first = await client.batches.list(limit=2)
    assert ([one.id for one in first.data], first.has_more) == ([ids[2], ids[1]], True)
    second = await client.batches.list(limit=2, after=ids[1])
    assert ([one.id for one in second.data], second.has_more) == ([ids[0]], False)
    assert [one.id async for one in client.batches.list(limit=1)] == ids[::-1]


async def test_many_batches_at_once(tmp_path):
    async with batch_service(tmp_path) as service:
        batches = await asyncio.gather(
            *(
                service.submit([line(f"{n}-{m}", max_tokens=-1 if m < n else 2) for m in range(10)])
                for n in range(10)
            )
        )
        ended = [await service.ended(one.id) for one in batches]
        counts = [one.request_counts for one in ended]
        assert [one.status for one in ended] == ["completed"] * 10
        assert [(one.completed, one.failed) for one in counts] == [(10 - n, n) for n in range(10)]


async def test_keys_see_their_own(tmp_path):
    keys = {"api_keys": frozenset({"a", "b"}), "admin_keys": frozenset({"root"})}
    async with batch_service(tmp_path, http=keys) as service:
        batch = await service.submit([line("a")], key="a")
        batch = await service.ended(batch.id, key="a")
        for key, sees in (("a", 1), ("b", 0), ("root", 1)):
            client = service.openai(key)
            assert len((await client.batches.list()).data) == sees
            assert len((await client.files.list()).data) == 2 * sees
        other = service.openai("b")
        for asked in (
            other.files.content(batch.output_file_id),
            other.files.delete(batch.input_file_id),
            other.batches.cancel(batch.id),
            other.batches.create(
                input_file_id=batch.input_file_id,
                endpoint=batch.endpoint,
                completion_window="1h",
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                await asked


async def test_a_batch_whose_file_went_before_its_turn_has_failed(tmp_path):
    async with batch_service(tmp_path, engine=SLOW, max_batches=1) as service:
        first = await service.submit([line("a", max_tokens=1000)])
        second = await service.submit([line("b")])
        client = service.openai()
        await client.files.delete(second.input_file_id)
        await client.batches.cancel(first.id)
        second = await service.ended(second.id)
        assert second.status == "failed"
        (fault,) = second.errors.data
        assert (fault.code, fault.param) == ("file_not_found", "input_file_id")
        assert second.input_file_id in fault.message


async def test_a_batch_that_cannot_fail_yet_fails_later(tmp_path, monkeypatch):
    async def broken(*args):
        raise ValueError("no such thing")

    monkeypatch.setattr(runner, "AGAIN_S", 0)
    async with batch_service(tmp_path) as service:
        monkeypatch.setattr(runner.Runner, "_run", broken)
        change, away = BatchStore.change, [UnavailableError("the database is away")]

        async def changed(store, id, how):
            if away:
                raise away.pop()
            return await change(store, id, how)

        monkeypatch.setattr(BatchStore, "change", changed)
        batch = await service.ended((await service.submit([line("a")])).id)
        assert (batch.status, away) == ("failed", [])
        assert batch.errors.data[0].message == "ValueError: no such thing"


def let_expire(db):
    row = db.execute("SELECT body FROM penstock_batch").fetchone()
    body = msgspec.json.encode(replace(batch_of(row), expires_at=1)).decode()
    db.execute("UPDATE penstock_batch SET expires_at = 1, body = ?", (body,))


async def test_the_batches_of_a_server_are_no_jobs_of_its_user(tmp_path):
    before = set(known_folders())
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(line(str(number)) for number in range(100))
        await service.under_way(batch.id)
        assert set(known_folders()) <= before
        folder = tmp_path / "running" / batch.id / "output.jsonl.penstock"
        assert {"status.json", "control.sock"}.isdisjoint(one.name for one in folder.iterdir())


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_batch_whose_model_is_gone_can_end(tmp_path, how):
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(line(str(number)) for number in range(100))
        await service.under_way(batch.id)
    async with batch_service(tmp_path, models=("other",), lease_s=0.03) as service:
        client = service.openai()
        if how == "cancelled":
            await client.batches.cancel(batch.id)
        else:
            await service.service._stores.batches._state.run(let_expire)
        ended = await service.ended(batch.id)
        assert ended.status == how
        assert 0 < ended.request_counts.completed < 100
        left = await service.read(ended.error_file_id)
        assert {one["error"]["code"] for one in left} == {f"batch_{how}"}


async def test_a_server_that_lost_a_batch_does_not_end_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(runner, "PROGRESS_S", 0.01)
    caplog.set_level("INFO", "penstock.service")
    async with batch_service(tmp_path, engine=SLOW, max_in_flight=2) as service:
        batch = await service.submit(line(str(number)) for number in range(20))
        await service.under_way(batch.id)
        stores = service.service._stores
        run = stores.runner._runs[batch.id]
        await stores.batches._state.run(
            lambda db: db.execute("UPDATE penstock_batch SET server = 'x', leased_until = 9e9")
        )
        await asyncio.wait([run.task])
        assert (await service.openai().batches.retrieve(batch.id)).status == "in_progress"
        assert [file.id async for file in service.openai().files.list(purpose="batch_output")] == []
        assert "another server runs it" in caplog.text


async def test_a_server_goes_on_where_it_was_stopped(tmp_path):
    slow = {**SLOW, "max_num_seqs": 4}
    async with batch_service(tmp_path, engine=slow) as service:
        batch = await service.submit([line(str(number), max_tokens=8) for number in range(60)])
        async with asyncio.timeout(30):
            while (await service.openai().batches.retrieve(batch.id)).request_counts.completed < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    async with batch_service(tmp_path) as service:
        ended = await service.ended(batch.id)
        assert (ended.status, ended.request_counts.completed) == ("completed", 60)
        answers = await service.read(ended.output_file_id)
        assert [one["custom_id"] for one in answers] == [str(number) for number in range(60)]


async def test_a_server_leaves_batches_of_other_models_alone(tmp_path):
    async with batch_service(tmp_path, engine=SLOW) as service:
        batch = await service.submit([line(str(number), max_tokens=99) for number in range(9)])
    async with batch_service(tmp_path, models=["other"]) as service:
        client = service.openai()
        await asyncio.sleep(0.05)
        assert (await client.batches.retrieve(batch.id)).status in ("validating", "in_progress")
    async with batch_service(tmp_path) as service:
        assert (await service.ended(batch.id)).status == "completed"


async def test_a_batch_that_comes_while_leases_are_renewed_is_kept(tmp_path, monkeypatch):
    renew, released = BatchStore.renew, asyncio.Event()
    waiting = asyncio.Event()

    async def slow(self, ids):
        statuses = await renew(self, ids)
        waiting.set()
        await released.wait()
        return statuses

    monkeypatch.setattr(BatchStore, "renew", slow)
    async with batch_service(tmp_path) as service:
        await service.openai().batches.list()  # the first use starts all
        await waiting.wait()
        batch = await service.submit([line(str(number)) for number in range(20)])
        released.set()
        assert (await service.ended(batch.id)).request_counts.completed == 20
