"""OpenAI's client and its files: uploads, whole and in parts, pages, ranges, expiry."""

import asyncio
import hashlib
import time

import openai
import pytest

from batch_service import batch_service, line, lines

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


async def test_pages_of_files(service):
    client = service.openai()
    ids = [(await upload(client, f"{number}.jsonl")).id for number in range(3)]
    assert [one.id async for one in client.files.list(limit=2)] == ids[::-1]
    assert [one.id async for one in client.files.list(limit=1, order="asc")] == ids
    assert [one.id async for one in client.files.list(purpose="batch_output")] == []


@pytest.mark.parametrize(
    ("range", "status", "part"),
    [
        ("bytes=0-3", 206, CONTENT[:4]),
        ("bytes=5-", 206, CONTENT[5:]),
        ("bytes=-4", 206, CONTENT[-4:]),
        ("bytes=9-9999999", 206, CONTENT[9:]),
        ("bytes=9999999-", 416, None),
        ("lines=1-2", 200, CONTENT),
    ],
)
async def test_ranges(service, range, status, part):
    file = await upload(service.openai())
    async with service.http() as http:
        reply = await http.get(f"/v1/files/{file.id}/content", headers={"range": range})
    assert reply.status_code == status
    if part is not None:
        assert reply.content == part
        assert reply.headers["content-length"] == str(len(part))


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
    await (await service.service.opened()).files.sweep()
    async with asyncio.timeout(10):  # the service itself may sweep just now
        while list((service.service.folder / "files").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_upload_in_parts(service):
    client = service.openai()
    made = await client.uploads.create(
        filename="in.jsonl", purpose="batch", bytes=len(CONTENT), mime_type="application/jsonl"
    )
    parts = [
        (await client.uploads.parts.create(made.id, data=CONTENT[at : at + 50])).id
        for at in range(0, len(CONTENT), 50)
    ]
    with pytest.raises(openai.BadRequestError):
        await client.uploads.complete(made.id, part_ids=parts[1:])
    with pytest.raises(openai.BadRequestError):
        await client.uploads.complete(made.id, part_ids=parts, md5="0" * 32)
    md5 = hashlib.md5(CONTENT).hexdigest()
    done = await client.uploads.complete(made.id, part_ids=parts, md5=md5)
    assert done.status == "completed"
    assert (await client.files.content(done.file.id)).content == CONTENT
    with pytest.raises(openai.BadRequestError):
        await client.uploads.cancel(made.id)
    assert len(list((service.service.folder / "files").iterdir())) == 1


async def test_an_upload_is_cancelled(service):
    client = service.openai()
    made = await client.uploads.create(
        filename="x", purpose="batch", bytes=3, mime_type="text/plain"
    )
    await client.uploads.parts.create(made.id, data=b"ab")
    with pytest.raises(openai.BadRequestError):
        await client.uploads.parts.create(made.id, data=b"cde")
    assert (await client.uploads.cancel(made.id)).status == "cancelled"
    assert not list((service.service.folder / "files").iterdir())
