import json
import sys
from base64 import b64encode
from io import BytesIO
from urllib.parse import quote

import pytest

from penstock.batch.rows.images import RowImages
from penstock.batch.rows.row import Row
from penstock.errors import MissingExtraError
from penstock.openai.media.images import content_of, data_in, data_uri, part_with
from penstock.openai.media.parts import frames_uri
from vision_models import image_file, image_part, picture

PNG, JPEG = image_file(1), image_file(2, "JPEG")


async def loaded(rows, column="photo", messages=None):
    images = RowImages(column, messages)
    made = [Row(n, values) for n, values in enumerate(rows)]
    found = [row async for some in images.load(made) for row in some]
    images.close()
    assert {id(row) for row in found} == {id(row) for row in made}
    return made


async def test_values_of_all_forms_become_data_uris(tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes(PNG)
    forms = [
        PNG,
        bytearray(PNG),
        {"bytes": PNG, "path": "gone.png"},
        {"bytes": None, "path": str(path)},
        str(path),
        path,
        data_uri(PNG),
        path.as_uri(),
    ]
    rows = await loaded([{"photo": form} for form in forms])
    assert all(row.images == [[data_uri(PNG)]] for row in rows)
    assert {row.failure for row in rows} == {None}
    assert rows[0].nbytes >= len(PNG)


async def test_a_row_may_have_several_images_or_none():
    rows = await loaded([{"photo": [PNG, JPEG]}, {"photo": None}, {"photo": []}, {}])
    assert rows[0].images == [[data_uri(PNG)], [data_uri(JPEG)]]
    assert not any(uris for row in rows[1:] for uris in row.images or ())


async def test_an_image_of_pillows_is_taken_as_it_is():
    (row,) = await loaded([{"photo": picture(1)}])
    assert row.images[0][0].startswith("data:image/bmp;base64,")


async def test_a_url_is_left_to_the_engine():
    (row,) = await loaded([{"photo": "https://example.com/cat.png"}])
    assert row.images == [["https://example.com/cat.png"]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("/nowhere/cat.png", "'/nowhere/cat.png' cannot be loaded"),
        (7, "not a int"),
        (b"", "the image is empty"),
        ({"bytes": None, "path": None}, "must be bytes, a path or a URL"),
    ],
)
async def test_what_cannot_be_loaded_fails_its_row_alone(value, words):
    bad, good = await loaded([{"photo": value}, {"photo": PNG}])
    assert words in str(bad.failure)
    assert bad.failure.param == "photo"
    assert good.images == [[data_uri(PNG)]]


async def test_a_row_that_cannot_be_read_loads_no_image():
    images = RowImages("photo", None)
    row = Row(0, {"photo": "/nowhere/cat.png"}, "invalid UTF-8")
    assert [some async for some in images.load([row])] == [[row]]
    assert (row.images, row.failure) == (None, None)
    images.close()


async def test_parts_of_conversations_are_loaded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    parts = [
        {"type": "image", "image": PNG, "text": None, "image_url": None},
        {"type": "text", "text": "And?", "image": None},
        image_part(JPEG),
        {"type": "input_image", "image_url": str(path)},
    ]
    row, text = await loaded(
        [
            {"chat": [{"role": "user", "content": parts}]},
            {"chat": [{"role": "user", "content": "hello"}]},
        ],
        None,
        "chat",
    )
    assert row.images == [[data_uri(PNG)], [data_uri(JPEG)], [data_uri(PNG)]]
    assert text.images is None


async def test_videos_and_frames_in_conversations(tmp_path):
    video = b"\0\0\0\x18ftypisom"
    path, frame = tmp_path / "a.mp4", tmp_path / "a.png"
    path.write_bytes(video)
    frame.write_bytes(PNG)
    parts = [
        {"type": "video", "video": str(path), "image": None},
        {"type": "video_url", "video_url": {"url": data_uri(video)}},
        {"type": "video", "video": [str(frame), JPEG]},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "video", "video": ["https://example.com/a.png"]},
    ]
    wanted = [[data_uri(video)]] * 2 + [[frames_uri([PNG, JPEG])], ["https://example.com/a.mp4"]]
    written = json.dumps([{"role": "user", "content": parts[3:4]}])
    rows = [{"chat": [{"role": "user", "content": parts[:4]}]}, {"chat": written}]
    made = await loaded(rows, None, "chat")
    assert [row.images for row in made] == [wanted, wanted[3:]]
    (bad,) = await loaded([{"chat": [{"role": "user", "content": parts[4:]}]}], None, "chat")
    assert "a frame of a video is no URL" in str(bad.failure)


async def test_a_damaged_frame_fails_its_row_alone():
    frames = [[data_uri(PNG), "data:image/png;base64,!!"], [data_uri(PNG)]]
    parts = [{"type": "video", "video": some} for some in frames]
    rows = [{"chat": [{"role": "user", "content": [part]}]} for part in parts]
    bad, good = await loaded(rows, None, "chat")
    assert "video: the data URI is no base64" in str(bad.failure)
    assert good.images == [[frames_uri([PNG])]]


async def test_a_column_may_hold_videos():
    video = b"\x1aE\xdf\xa3" + bytes(8)
    (row,) = await loaded([{"photo": [video, PNG]}])
    assert [part_with(uri)["type"] for (uri,) in row.images] == ["video_url", "image_url"]


async def test_large_rows_go_on_before_all_are_loaded():
    large = bytes(9 << 20)
    images = RowImages("photo", None)
    rows = [Row(n, {"photo": large}) for n in range(5)]
    sizes = [len(some) async for some in images.load(rows)]
    images.close()
    assert sizes == [2, 2, 1]


async def test_the_pages_of_a_pdf_are_images():
    pdfium = pytest.importorskip("pypdfium2", reason="needs the extra pdf")

    document = pdfium.PdfDocument.new()
    for _ in range(3):
        document.new_page(100, 50)
    file = BytesIO()
    document.save(file)
    (row,) = await loaded([{"photo": file.getvalue()}])
    (pages,) = row.images
    assert len(pages) == 3
    assert all(image.startswith("data:image/png;base64,") for image in pages)
    assert data_in(pages[0], "x")[16:24] == (200).to_bytes(4, "big") + (100).to_bytes(4, "big")
    (damaged,) = await loaded([{"photo": file.getvalue()[:40]}])
    assert "the PDF cannot be read" in str(damaged.failure)


async def test_a_pdf_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    monkeypatch.delitem(sys.modules, "penstock.batch.stages.pdf", raising=False)
    (row,) = await loaded([{"photo": b"%PDF-1.7"}])
    assert isinstance(row.failure, MissingExtraError)
    assert "penstock[pdf]" in str(row.failure)


WRITTEN = b64encode(PNG).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{WRITTEN}",
        f"DATA:image/PNG;BASE64,{WRITTEN}",
        f"data:image/png;name=a.png; base64,{WRITTEN}",
        f"data:;base64,{WRITTEN[:6]}\n{WRITTEN[6:]}\n",
        f"data:;base64,{quote(WRITTEN.rstrip('='), safe='')}",
    ],
)
async def test_forms_of_data_uris(uri):
    assert data_in(uri, "x") == content_of(uri) == PNG
    (row,) = await loaded([{"photo": uri}])
    assert row.images == [[uri]]


def test_a_data_uri_without_base64():
    assert data_in("data:,BM%20b", "x") == b"BM b"
