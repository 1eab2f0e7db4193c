"""OpenAI's client and its files: uploads, whole and in parts, pages, ranges, expiry."""

import asyncio
import contextlib
import errno
import hashlib
import io
import stat
import time
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from batch_service import batch_service, line, lines
from penstock.errors import RequestError, UnavailableError
from penstock.service import content, forms
from penstock.service.files import UploadStore

CONTENT = lines([line("a"), line("b")])


@pytest.fixture
async def service(tmp_path):
    async with batch_service(tmp_path, max_file_bytes=100_000, max_bytes=200_000) as made:
        yield made


async def upload(client, name="in.jsonl", content=CONTENT, **more):
    return await client.files.create(file=(name, content), purpose="batch", **more)


async def test_a_file_from_upload_to_deletion(service):
    client = service.openai()
    file = await upload(client)
    assert (file.bytes, file.purpose, file.filename) == (len(CONTENT), "batch", "in.jsonl")
    assert file.expires_at == file.created_at + 30 * 86400
    assert (await client.files.retrieve(file.id)).id == file.id
    assert (await client.files.content(file.id)).content == CONTENT
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(file.id)
    assert not list((service.service.folder / "files").iterdir())


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../etc/passwd", "passwd"), ("..\\x\\y.jsonl", "y.jsonl"), ("a/b/", "file")],
)
async def test_names_never_lead_elsewhere(service, name, shown):
    assert (await upload(service.openai(), name)).filename == shown
    folder = service.service.folder
    assert not list((folder / "incoming").iterdir())
    assert len(list((folder / "files").iterdir())) == 1


def test_names_hold_no_control_characters():
    assert forms.safe_name("a\0\r\n") == "a\\x00\\r\\n"
    for name in ("報告\u30009月.jsonl", "Shot at 9.41\u202fAM.png"):
        assert forms.safe_name(f"C:\\{name}") == name


async def test_pages_of_files(service):
    client = service.openai()
    ids = [(await upload(client, f"{number}.jsonl")).id for number in range(3)]
    assert [one.id async for one in client.files.list(limit=2)] == ids[::-1]
    assert [one.id async for one in client.files.list(limit=1, order="asc")] == ids
    assert [one.id async for one in client.files.list(purpose="batch_output")] == []


@pytest.mark.parametrize(
    ("range", "status", "part", "told"),
    [
        ("bytes=0-3", 206, CONTENT[:4], "bytes 0-3/{size}"),
        ("bytes=5-", 206, CONTENT[5:], "bytes 5-{last}/{size}"),
        ("bytes=-4", 206, CONTENT[-4:], "bytes {end}-{last}/{size}"),
        ("bytes=9-9999999", 206, CONTENT[9:], "bytes 9-{last}/{size}"),
        ("bytes=9999999-", 416, None, "bytes */{size}"),
        ("bytes=-0", 416, None, "bytes */{size}"),
        ("lines=1-2", 200, CONTENT, None),
    ],
)
async def test_ranges(service, range, status, part, told):
    file = await upload(service.openai())
    async with service.http() as http:
        reply = await http.get(f"/v1/files/{file.id}/content", headers={"range": range})
    size = len(CONTENT)
    if told is not None:
        told = told.format(size=size, last=size - 1, end=size - 4)
    assert (reply.status_code, reply.headers.get("content-range")) == (status, told)
    if part is not None:
        assert reply.content == part
        assert reply.headers["content-length"] == str(len(part))


async def test_answers_are_for_the_server_alone(service):
    batch = await service.ended((await service.submit([line("a", model="sim")])).id)
    stored = service.service.folder / "files" / batch.output_file_id
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600


async def test_what_is_no_upload(service):
    client = service.openai()
    for name, given, status in (
        ("purpose", {"file": ("x", b"x"), "purpose": "fine-tune"}, 400),
        ("file", {"file": ("x", b"x" * 100_001), "purpose": "batch"}, 413),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            await client.files.create(**given)
        assert refused.value.status_code == status, name
    async with service.http() as http:
        for body, headers, status in (
            (b"{}", {"content-type": "application/json"}, 415),
            (b"--x\r\nbroken", {"content-type": "multipart/form-data; boundary=x"}, 400),
            (b"", {"content-type": "multipart/form-data; boundary=x"}, 400),
            (b"", {"content-type": "multipart/form-data"}, 415),
            (b"", {"content-type": f"multipart/form-data; boundary={'x' * 257}"}, 415),
            (
                b"",
                {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"},
                415,
            ),
        ):
            reply = await http.post("/v1/files", content=body, headers=headers)
            assert (reply.status_code, list(reply.json())) == (status, ["error"])
        fields = {"purpose": "batch", "colour": "blue"}
        reply = await http.post("/v1/files", data=fields, files={"file": ("x", b"x")})
        assert reply.json()["error"]["param"] == "colour"
        fields = {"purpose": "batch", "expires_after[anchor]": "created_at"}
        reply = await http.post("/v1/files", data=fields, files={"file": ("x", b"x")})
        assert reply.json()["error"]["message"] == "expires_after[seconds] is missing"
        twice = [("purpose", (None, "batch")), ("purpose", (None, "x")), ("file", ("x", b"x"))]
        reply = await http.post("/v1/files", files=twice)
        assert reply.json()["error"]["message"] == "purpose stands twice in the form"
    assert not list((service.service.folder / "incoming").iterdir())


async def test_files_that_come_at_once_have_the_limit_too(service):
    client = service.openai()
    sent = [upload(client, content=b"x" * 99_999) for _ in range(6)]
    made = await asyncio.gather(*sent, return_exceptions=True)
    refused = [one for one in made if isinstance(one, openai.APIStatusError)]
    assert {one.status_code for one in refused} == {507}
    assert (len(made), len(refused)) == (6, 4)
    assert len(list((service.service.folder / "files").iterdir())) == 2


async def test_all_files_together_have_a_limit(service):
    client = service.openai()
    await upload(client, content=b"x" * 99_999)
    await upload(client, content=b"x" * 99_999)
    with pytest.raises(openai.APIStatusError) as refused:
        await upload(client)
    assert refused.value.status_code == 507


async def test_files_expire(service, monkeypatch):
    client = service.openai()
    file = await upload(client, expires_after={"anchor": "created_at", "seconds": 60})
    assert file.expires_at == file.created_at + 60
    now = time.time()
    monkeypatch.setattr("penstock.service.files.time.time", lambda: now + 61)
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    assert [one async for one in client.files.list()] == []
    await (await service.service.opened()).files.sweep()
    async with asyncio.timeout(10):  # the service itself may sweep just now
        while list((service.service.folder / "files").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def parts_of(client, content=CONTENT):
    """A new upload, and its parts."""
    made = await client.uploads.create(
        filename="in.jsonl", purpose="batch", bytes=len(content), mime_type="application/jsonl"
    )
    return made.id, [
        (await client.uploads.parts.create(made.id, data=content[at : at + 50])).id
        for at in range(0, len(content), 50)
    ]


async def test_an_upload_in_parts(service):
    client = service.openai()
    id, parts = await parts_of(client)
    with pytest.raises(openai.BadRequestError):
        await client.uploads.complete(id, part_ids=parts[1:])
    with pytest.raises(openai.BadRequestError):
        await client.uploads.complete(id, part_ids=parts, md5="0" * 32)
    md5 = hashlib.md5(CONTENT).hexdigest()
    done = await client.uploads.complete(id, part_ids=parts, md5=md5)
    assert done.status == "completed"
    assert (await client.files.content(done.file.id)).content == CONTENT
    with pytest.raises(openai.BadRequestError):
        await client.uploads.cancel(id)
    (stored,) = (service.service.folder / "files").iterdir()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600


async def test_an_upload_is_cancelled(service):
    client = service.openai()
    made = await client.uploads.create(
        filename="x", purpose="batch", bytes=3, mime_type="text/plain"
    )
    await client.uploads.parts.create(made.id, data=b"ab")
    with pytest.raises(openai.BadRequestError):
        await client.uploads.parts.create(made.id, data=b"cdef")
    assert (await client.uploads.cancel(made.id)).status == "cancelled"
    assert not list((service.service.folder / "files").iterdir())


async def test_a_part_may_be_sent_again(service):
    client = service.openai()
    made = await client.uploads.create(
        filename="x", purpose="batch", bytes=4, mime_type="text/plain"
    )
    _, first, second, again = [
        (await client.uploads.parts.create(made.id, data=data)).id
        for data in (b"a", b"a", b"bcd", b"bcd")
    ]
    with pytest.raises(openai.BadRequestError, match="more than the 4 bytes"):
        await client.uploads.parts.create(made.id, data=b"e")
    with pytest.raises(openai.BadRequestError, match="have 7 bytes"):
        await client.uploads.complete(made.id, part_ids=[first, second, again])
    done = await client.uploads.complete(made.id, part_ids=[first, again])
    assert (await client.files.content(done.file.id)).content == b"abcd"


async def test_parts_count_as_files_do(service):
    client = service.openai()
    size = 90_000
    made = [
        await client.uploads.create(
            filename="x", purpose="batch", bytes=size, mime_type="text/plain"
        )
        for _ in range(3)
    ]
    parts = [await client.uploads.parts.create(one.id, data=b"x" * size) for one in made[:2]]
    for refused in (
        client.uploads.parts.create(made[2].id, data=b"x" * size),
        client.uploads.create(filename="x", purpose="batch", bytes=size, mime_type="text/plain"),
        upload(client, content=b"x" * size),
    ):
        with pytest.raises(openai.APIStatusError) as error:
            await refused
        assert error.value.status_code == 507
    done = await client.uploads.complete(made[0].id, part_ids=[parts[0].id])  # it takes no more
    assert done.file.bytes == size
    await client.uploads.cancel(made[1].id)
    await client.uploads.parts.create(made[2].id, data=b"x" * size)


@pytest.mark.parametrize("reached", ["open", "write", "flush"])
async def test_a_full_disk_has_a_status_of_its_own(service, monkeypatch, reached):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.BytesIO):
        pass

    def opened(*_: Any, **__: Any) -> Any:
        if reached == "open":
            full()
        setattr(Full, reached, full)
        return Full()

    monkeypatch.setattr(forms, "open", opened, raising=False)
    with pytest.raises(openai.APIStatusError) as error:
        await upload(service.openai())
    assert (error.value.status_code, "No space left" in str(error.value)) == (507, True)


async def test_parts_that_find_no_room_to_be_joined(service, monkeypatch):
    client = service.openai()
    id, parts = await parts_of(client)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(content, "open", full, raising=False)
    with pytest.raises(openai.APIStatusError) as error:
        await client.uploads.complete(id, part_ids=parts)
    assert error.value.status_code == 507
    monkeypatch.undo()
    assert (await client.uploads.complete(id, part_ids=parts)).status == "completed"


async def test_content_that_is_gone_is_no_empty_answer(service):
    client = service.openai()
    file = await upload(client)
    (service.service.folder / "files" / file.id).unlink()
    with pytest.raises(openai.NotFoundError, match="is gone"):
        await client.files.content(file.id)


async def test_a_part_whose_storing_is_uncertain_is_forgotten(service, tmp_path):
    stores = await service.service.opened()
    id, (part,) = await parts_of(service.openai(), b"a")
    run = stores.uploads._state.run
    answers = iter([UnavailableError("the connection is lost")])

    async def loses_the_answer(work):
        result = await run(work)
        for error in answers:
            raise error
        return result

    state: Any = SimpleNamespace(run=loses_the_answer)
    uploads = UploadStore(state, stores.files, tmp_path, service.service.settings)
    (tmp_path / "data").write_bytes(b"a")
    with pytest.raises(UnavailableError):
        await uploads.add_part(None, id, tmp_path / "data")
    rows = await run(lambda db: db.execute("SELECT id FROM penstock_part").fetchall())
    assert [row["id"] for row in rows] == [part]
    assert [file.name for file in (service.service.folder / "files").iterdir()] == [part]


@contextlib.contextmanager
def gate(store, name, monkeypatch):
    """Let the first call of an async method of `store` wait for an event: reached, and go on."""
    real, reached, on = getattr(store, name), asyncio.Event(), asyncio.Event()

    async def waits(*args, **options):
        monkeypatch.setattr(store, name, real)
        reached.set()
        await on.wait()
        return await real(*args, **options)

    monkeypatch.setattr(store, name, waits)
    yield reached, on


async def test_an_upload_is_completed_once(service, monkeypatch):
    client, stores = service.openai(), await service.service.opened()
    id, parts = await parts_of(client)
    with gate(stores.files.content, "join", monkeypatch) as (reached, on):
        first = asyncio.create_task(client.uploads.complete(id, part_ids=parts))
        await reached.wait()
        again = asyncio.create_task(client.uploads.complete(id, part_ids=parts))
        on.set()
        done = await first
    assert (await again).file == done.file
    assert (await client.uploads.complete(id, part_ids=parts)).file == done.file
    with pytest.raises(openai.BadRequestError, match="completed"):
        await client.uploads.complete(id, part_ids=parts[::-1])
    assert [file.id async for file in client.files.list()] == [done.file.id]
    assert (await client.files.content(done.file.id)).content == CONTENT


async def test_an_upload_that_ends_during_its_completion_leaves_no_file(service, monkeypatch):
    client, stores = service.openai(), await service.service.opened()
    id, parts = await parts_of(client)
    with gate(stores.uploads, "_end", monkeypatch) as (reached, on):
        completion = asyncio.create_task(client.uploads.complete(id, part_ids=parts))
        await reached.wait()
        assert (await client.uploads.cancel(id)).status == "cancelled"
        on.set()
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            await completion
    assert [file async for file in client.files.list()] == []
    folder = service.service.folder
    assert not [*(folder / "files").iterdir(), *(folder / "incoming").iterdir()]


async def test_two_ingresses_join_the_parts_of_one_upload(service, monkeypatch):
    client, stores = service.openai(), await service.service.opened()
    id, parts = await parts_of(client)
    other = UploadStore(
        stores.uploads._state, stores.files, stores.uploads._folder, service.service.settings
    )
    with gate(stores.files, "add", monkeypatch) as (reached, on):
        first = asyncio.create_task(stores.uploads.complete(None, id, parts, None))
        await reached.wait()  # joined, and not yet stored
        done = await other.complete(None, id, parts, None)
        on.set()
        with pytest.raises(RequestError, match="completed"):
            await first
    assert [file.id async for file in client.files.list()] == [done["file"]["id"]]
    assert (await client.files.content(done["file"]["id"])).content == CONTENT
