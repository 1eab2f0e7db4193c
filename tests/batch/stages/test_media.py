import asyncio
import errno
import os
import random
import sys
import threading
from base64 import b64decode, b64encode
from io import BytesIO
from unittest import mock

import pytest
from PIL import Image

from penstock.batch import PrepareMultimodalStageConfig, Processor, ProcessorConfig
from penstock.batch.rows.row import nbytes
from penstock.batch.stages.media import Loader, PrepareMultimodalStage
from penstock.engines.media.images import FORMS, decoded, prepared as prepared_image, written
from penstock.errors import ConfigError, MissingExtraError, RequestError
from penstock.openai.media.images import bitmap
from penstock.openai.media.parts import frames_uri


def image(form="PNG", size=8):
    # Does not compress, so that half of it is not enough.
    pixels = random.Random(0).randbytes(3 * size * size)
    file = BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(file, form)
    return file.getvalue()


def png():
    return image(size=1)


def asked(image, kind="image_url"):
    content = [
        {"type": "text", "text": "What is it?", kind: None},
        {"type": kind, kind: image, "text": None},
    ]
    return {"messages": [{"role": "user", "content": content}]}


async def prepared(rows, keep=True, **options):
    stage = PrepareMultimodalStage(None, options)
    stream = Processor(ProcessorConfig(should_continue_on_error=keep), [stage])(rows)
    return [row async for row in stream]


@pytest.fixture
def serve():
    """A server on loopback that gives bytes, or an error."""

    async def start(answers):
        async def handle(reader, writer):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            status, body = answers[path]
            writer.write(
                b"HTTP/1.0 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
            )
            await writer.drain()
            writer.close()

        return await asyncio.start_server(handle, "127.0.0.1", 0)

    return start


async def test_images_from_everywhere_become_part_of_the_message(tmp_path, serve):
    data = png()
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    uri = f"data:image/png;base64,{b64encode(data).decode()}"
    async with await serve({"/x.png": (200, data)}) as server:
        port = server.sockets[0].getsockname()[1]
        sources = [
            asked({"url": str(path)}),
            asked({"url": path.as_uri()}),
            asked(f"http://127.0.0.1:{port}/x.png"),
            asked(uri),
            asked(data, "image"),
            asked({"bytes": data, "path": None}, "image"),
        ]
        found = await prepared(sources)
    assert [row["status"] for row in found] == ["ok"] * 6, [row["error"] for row in found]
    for row in found:
        assert row["messages"][0]["content"] == [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": uri}},
        ]
        assert row["multimodal_data"] == {"image": [data]}
    assert len({str(row["multimodal_uuids"]) for row in found}) == 1


async def test_videos_are_left_to_the_engine_to_decode(tmp_path):
    video, frames = b"\0\0\0\x18ftypisom", [png(), image()]
    path = tmp_path / "a.mp4"
    path.write_bytes(video)
    uri = f"data:video/mp4;base64,{b64encode(video).decode()}"
    by_path, by_uri, listed, cut = await prepared(
        [
            asked(str(path), "video"),
            asked({"url": uri}, "video_url"),
            asked(frames, "video"),
            asked([image("JPEG", 64)[:-300]], "video"),
        ]
    )
    for row in (by_path, by_uri):
        assert row["messages"][0]["content"][1] == {"type": "video_url", "video_url": {"url": uri}}
        assert row["multimodal_data"] == {"video": [video]}
    assert by_path["multimodal_uuids"] == by_uri["multimodal_uuids"] != listed["multimodal_uuids"]
    assert listed["multimodal_data"] == {"video": [frames]}
    assert listed["messages"][0]["content"][1]["video_url"]["url"] == frames_uri(frames)
    assert "cannot be decoded" in cut["error"]["message"]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "F"])
@pytest.mark.parametrize("kind", ["image", "image_pil", "image_url", "input_image"])
async def test_images_that_the_caller_has_opened(mode, kind):
    opened = Image.open(BytesIO(image())).convert(mode)
    whole, broken = await prepared(
        [asked(opened, kind), asked(Image.open(BytesIO(image("JPEG", 64)[:-300])), kind)]
    )
    uri = whole["messages"][0]["content"][1]["image_url"]["url"]
    assert uri.startswith("data:image/png;base64,")
    again = Image.open(BytesIO(b64decode(uri.partition(",")[2])))
    assert again.convert("RGB").tobytes() == opened.convert("RGB").tobytes()
    assert "cannot be decoded, it is damaged or cut off" in broken["error"]["message"]


def test_images_of_16_bits_are_scaled_to_8():
    deep = Image.new("I", (3, 2), 0x8000).convert("I;16")
    file = BytesIO()
    deep.save(file, "PNG")
    for data in (file.getvalue(), written(deep).data, bitmap(deep)):
        assert decoded(data).getextrema() == ((0x80, 0x80),) * 3


@pytest.mark.parametrize(("mode", "value"), [("I", 300), ("I", -1), ("F", 0.5), ("F", 1e6)])
def test_wide_pixels_whose_white_nobody_knows_are_refused(mode, value):
    wide = Image.new(mode, (3, 2), value)
    file = BytesIO()
    wide.save(file, "TIFF")
    for read in (lambda: decoded(file.getvalue()), lambda: written(wide), lambda: bitmap(wide)):
        with pytest.raises(RequestError, match="bring them to 8 bits"):
            read()
    assert decoded(written(Image.new(mode, (3, 2), 200)).data).getextrema() == ((200, 200),) * 3


def test_an_opened_image_has_the_weight_of_its_pixels():
    assert nbytes({"image": Image.new("RGB", (100, 50))}) > 100 * 50 * 3


async def test_messages_without_images():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]}
    (joined,) = await prepared([row])
    assert [message["content"] for message in joined["messages"]] == ["s", "ab"]
    assert joined["multimodal_data"] is None
    (apart,) = await prepared([row], content_format="openai")
    assert apart["messages"][1]["content"] == parts


async def test_what_cannot_be_loaded_is_an_error_of_its_row(tmp_path, serve):
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "large.png").write_bytes(png() + b"\0" * 200)
    async with await serve({"/gone.png": (404, b"")}) as server:
        port = server.sockets[0].getsockname()[1]
        sources = [
            asked(str(tmp_path / "absent.png")),
            asked(str(tmp_path / "a.txt")),
            asked(f"http://127.0.0.1:{port}/gone.png"),
            asked("http://127.0.0.1:1/refused.png"),
            asked(3),
            asked("data:image/png;base64,?"),
            asked(str(tmp_path / "large.png")),
            {"messages": None},
            {"messages": ["x"]},
            asked(png()),
        ]
        found = await prepared(sources, max_bytes=200)
    assert [row["status"] for row in found] == ["error"] * 9 + ["ok"]
    parts = [
        os.strerror(errno.ENOENT),
        "no image of a known",
        "answered 404",
        "cannot be loaded",
        "must be bytes, a path",
        "",
        "more than",
    ]
    for row, part in zip(
        found, [*parts, "no column 'messages'", "no list of messages"], strict=False
    ):
        assert row["error"]["stage"] == "PrepareMultimodalStage"
        assert part in row["error"]["message"]


async def test_a_download_that_does_not_come(serve):
    never = asyncio.Event()

    async def handle(reader, writer):
        await never.wait()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (row,) = await prepared([asked(f"http://127.0.0.1:{port}/x.png")], timeout_s=0.05)
        never.set()
    assert "timed out" in row["error"]["message"] or "not loaded within" in row["error"]["message"]


async def test_rows_come_one_to_one_in_order_and_can_be_cancelled():
    sizes = [1 + number % 9 for number in range(60)]
    found = await prepared([asked(image(size=size), "image") for size in sizes])
    assert [row["multimodal_data"]["image"][0] for row in found] == [
        image(size=size) for size in sizes
    ]
    asked_for = asyncio.Event()
    never = asyncio.Event()
    servers = set()

    async def handle(reader, writer):
        servers.add(asyncio.current_task())
        asked_for.set()
        await never.wait()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        before = asyncio.all_tasks()
        task = asyncio.create_task(prepared([asked(f"http://127.0.0.1:{port}/x.png")]))
        await asked_for.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() - servers == before  # nobody is left who waits for it
        never.set()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_image_is_decoded_to_its_end(form):
    data = image(form)
    found = prepared_image(data)
    assert found.data == data
    assert found.uri == f"data:image/{form.lower()};base64,{b64encode(data).decode()}"
    with pytest.raises(RequestError, match=r"the image cannot be decoded|no image of a known form"):
        prepared_image(image(form, size=64)[: len(image(form, size=64)) // 2])


def test_what_is_no_image():
    # Pillow would run a program on it.
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
    for data in (b"", b"no image", postscript):
        with pytest.raises(RequestError, match="no image of a known form"):
            prepared_image(data)


async def test_a_truncated_image_is_an_error_of_its_row():
    whole = image("JPEG", size=64)
    rows = [asked(whole, "image"), asked(whole[: len(whole) // 2], "image"), asked(whole, "image")]
    found = await prepared(rows)
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert "cannot be decoded, it is damaged or cut off" in found[1]["error"]["message"]
    assert found[1]["error"]["type"] == "invalid_request_error"


async def test_without_pillow(monkeypatch):
    monkeypatch.delitem(sys.modules, "penstock.engines.media.images")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        MissingExtraError, match=r"preparation of images needs .* pip install 'penstock\[images\]'"
    ):
        await prepared([asked(b"")])


async def test_the_time_of_a_source_begins_with_its_turn(monkeypatch, tmp_path):
    timeout = mock.Mock(wraps=asyncio.timeout)
    monkeypatch.setattr(asyncio, "timeout", timeout)
    loader, gate, path = Loader(threads=1), threading.Event(), tmp_path / "x"
    path.write_bytes(b"x")
    read = loader._read
    monkeypatch.setattr(loader, "_read", lambda source: gate.wait() and read(source))
    loads = [asyncio.create_task(loader.load(path, "image")) for _ in range(3)]
    for _ in range(10):  # as far as they get
        await asyncio.sleep(0)
    assert timeout.call_count == 1
    gate.set()
    assert await asyncio.gather(*loads) == [b"x"] * 3
    loader.close()


async def test_a_file_by_its_path_object(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    loader = Loader()
    assert await loader.load(tmp_path / "a.wav", "audio") == b"RIFF"
    loader.close()


async def test_files_of_this_machine_below_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"RIFF")
    (tmp_path / "in/c.wav").symlink_to(tmp_path / "b.wav")
    loader = Loader(folder=str(tmp_path / "in"))
    assert await loader.load(f"file://{tmp_path}/in/a.wav", "audio") == b"RIFF"
    for outside in ("b.wav", "in/../b.wav", "in/c.wav"):
        with pytest.raises(RequestError, match="it is not below"):
            await loader.load(str(tmp_path / outside), "audio")
    for scheme in ("local://", "simplecache::file://", "FILE://"):
        with pytest.raises(RequestError, match="its scheme is none of file"):
            await loader.load(f"{scheme}{tmp_path}/b.wav", "audio")
    loader.close()


async def test_an_empty_folder_lets_no_file_in(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    monkeypatch.chdir(tmp_path)
    loader = Loader(folder="")
    for place in ("a.wav", f"file://{tmp_path}/a.wav"):
        with pytest.raises(RequestError, match="allowed_local_media_path is empty"):
            await loader.load(place, "audio")
    loader.close()


def test_the_configuration():
    with pytest.raises(ConfigError, match="timeout_s"):
        PrepareMultimodalStageConfig(timeout_s=0)
