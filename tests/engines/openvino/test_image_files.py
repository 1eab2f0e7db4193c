import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock.engines.openvino.image_files import image_files
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import RequestError
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
        await image_files(images, OpenVINOOptions(**options))


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
        assert await image_files([f"{url}/cat.png"], allowed) == (b"cat",)
        with pytest.raises(RequestError, match="the server answered 404"):
            await image_files([f"{url}/dog.png"], allowed)
        server.shutdown()
