import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock.engines.openvino.media_files import media_files
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import RequestError
from penstock.openai.media.images import data_uri
from penstock.openai.media.parts import frames_uri
from vision_models import image_file


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [
        ({"max_images": 2}, [image_file(1)] * 3, "have 3 images, and max_images is 2"),
        ({"max_image_bytes": 7000}, [image_file(1)] * 2, "than the 7,000 bytes of max_image_bytes"),
        ({}, ["/etc/passwd"], "no data URI"),
        ({}, ["file:///etc/passwd"], "no data URI"),
        ({}, ["http://127.0.0.1:9/cat.png"], r"allow URLs with engine_kwargs \{image_urls: true"),
        ({"image_urls": True}, ["http://127.0.0.1:9/cat.png"], "cannot be loaded"),
        ({}, ["data:image/png;base64,a"], "is no base64"),
    ],
)
async def test_files_are_limited(options, images, words):
    with pytest.raises(RequestError, match=words):
        await media_files(tuple(images), (), OpenVINOOptions(**options))


async def test_videos_and_their_frames():
    video, frames = b"\0\0\0\x18ftypisom", (image_file(1), image_file(2))
    given = (data_uri(video), frames_uri(frames), video)
    found = await media_files((data_uri(frames[0]),), given, OpenVINOOptions())
    assert found == (frames[:1], ((video,), frames, (video,)))


@pytest.mark.parametrize(
    ("options", "videos", "words"),
    [
        ({"max_images": 2}, (b"a", b"b"), "have 1 images and 2 videos, and max_images is 2"),
        ({"max_image_bytes": 1999}, (bytes(2000),), "than the 1,999 bytes of max_image_bytes"),
        ({}, ("/etc/passwd",), "the video '/etc/passwd' is no data URI: .* data:video/mp4;base64"),
        ({}, ("https://a.example/b.mp4",), "image_urls: true"),
        ({}, ("data:video/jpeg;base64,%",), "is no base64"),
        ({}, ("data:video/jpeg;base64,",), "has no data"),
    ],
)
async def test_videos_are_limited_together_with_images(options, videos, words):
    with pytest.raises(RequestError, match=words):
        await media_files((b"image",), videos, OpenVINOOptions(**options))


async def test_a_url_is_loaded_where_it_is_allowed():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/cat.png" else 404)
            self.end_headers()
            self.wfile.write(b"cat")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        allowed = OpenVINOOptions(image_urls=True)
        assert await media_files((f"{url}/cat.png",), (), allowed) == ((b"cat",), ())
        assert await media_files((), (f"{url}/cat.png",), allowed) == ((), ((b"cat",),))
        with pytest.raises(RequestError, match="the server answered 404"):
            await media_files((f"{url}/dog.png",), (), allowed)
        server.shutdown()
