import pytest

from penstock.errors import RequestError, UnsupportedError
from penstock.openai.media.images import data_uri, kind_of
from penstock.openai.media.parts import files_in, frames_uri, seen, video_at, with_media
from vision_models import image_file, picture

VIDEO = b"\0\0\0\x18ftypisom"
READS = ("text", "image", "video")


def asked(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (VIDEO, "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/mp4"),
        (b"\0\0\0\x18ftypheic", "application/octet-stream"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
    ],
)
def test_the_kind_of_a_file(data, kind):
    assert kind_of(data) == kind


def test_videos_and_images_are_told_apart_and_keep_their_order():
    image, frames = image_file(1), [image_file(2), image_file(3)]
    parts = [
        {"type": "video_url", "video_url": {"url": data_uri(VIDEO)}},
        {"type": "image_url", "image_url": {"url": data_uri(image)}},
        {"type": "video", "video": VIDEO, "image": None},
        {"type": "video", "video": frames},
        {"type": "video_url", "video_url": "https://example.com/a.mp4"},
    ]
    messages = asked(*parts)
    shown, images, videos = seen(messages, READS, "tiny")
    kinds = ["video", "image", "video", "video", "video", "text"]
    assert [part["type"] for part in shown[0]["content"]] == kinds
    assert images == (data_uri(image),)
    assert videos == (data_uri(VIDEO), VIDEO, frames_uri(frames), "https://example.com/a.mp4")
    assert messages == asked(*parts)


def test_frames_of_all_forms():
    frames = [image_file(1), data_uri(image_file(2)), picture(3)]
    uri = video_at({"type": "video", "video": frames}, "x")
    assert isinstance(uri, str)
    first, second, third = files_in(uri, "x")
    assert (first, second, third[:2]) == (image_file(1), image_file(2), b"BM")
    assert files_in(data_uri(VIDEO), "x") == (VIDEO,)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "video_url", "video_url": {"url": ""}}, "needs a video_url with a url"),
        ({"type": "video", "video": []}, "needs a video_url with a url"),
        ({"type": "video", "video": 3}, "needs a video_url with a url"),
        ({"type": "video", "video": ["file:///a.png"]}, "a frame of a video is a data URI"),
        ({"type": "video", "video": VIDEO, "fps": 2.0}, r"content\[0\]\.fps is not supported"),
        ({"type": "image", "image": VIDEO, "max_pixels": 9}, r"\.max_pixels is not supported"),
        (
            {"type": "audio_url", "audio_url": "x"},
            "reads texts and images and videos, no 'audio_url'",
        ),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(part, words):
    with pytest.raises(RequestError, match=words) as told:
        seen(asked(part), READS, "tiny")
    assert str(told.value.param).startswith("messages[0].content[0]")


def test_who_sees_images_alone_refuses_videos():
    part = {"type": "video", "video": VIDEO}
    for inputs, reads in ((("text",), "texts"), (("text", "image"), "texts and images")):
        with pytest.raises(UnsupportedError, match=f"tiny engine reads {reads}, no 'video'"):
            seen(asked(part), inputs, "tiny")


def test_media_that_an_engine_reads_by_itself_are_left_to_it():
    messages = asked({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}})
    assert seen(messages, ("text", "audio"), "tiny") == (messages, (), ())


def test_parts_get_the_uris_that_were_loaded():
    given = asked({"type": "video", "video": VIDEO}, {"type": "image", "image": b"x"})
    shown = with_media(given, [["https://a.example/b"], ["data:,c", "data:,d"]])[0]["content"]
    assert shown == [
        {"type": "video_url", "video_url": {"url": "https://a.example/b"}},
        {"type": "image_url", "image_url": {"url": "data:,c"}},
        {"type": "image_url", "image_url": {"url": "data:,d"}},
        {"type": "text", "text": "What?"},
    ]
