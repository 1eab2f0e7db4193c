"""What is told of batches that have ended, and how it is signed."""

import asyncio
import base64
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import openai
import pytest

from batch_service import batch_service, line
from penstock.errors import ConfigError
from penstock.serve.config.settings import WebhookSettings
from penstock.service import webhooks

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@contextlib.contextmanager
def receiver(statuses):
    """A server that answers with these statuses, and what it was sent."""
    got = []
    left = iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(({key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(next(left, 200))
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", got
        finally:
            server.shutdown()
            thread.join()


async def test_a_signed_event_tells_of_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0, 0.0))
    with receiver([503]) as (url, got):
        hooks = (WebhookSettings(url=url, secret=SECRET),)
        async with batch_service(tmp_path, webhooks=hooks) as service:
            batch = await service.ended((await service.submit([line("a")])).id)
            async with asyncio.timeout(20):
                while len(got) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        (first, body), (second, again) = got
        assert body == again
        assert first["webhook-id"] == second["webhook-id"]
        client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
        event: Any = client.webhooks.unwrap(body.decode(), second)
        assert (event.type, event.data.id) == ("batch.completed", batch.id)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.decode() + " ", second)


@pytest.mark.parametrize(
    ("url", "secret"),
    [("ftp://x", SECRET), ("http://x", "secret"), ("http://x", "whsec_c2hvcnQ=")],
)
def test_wrong_webhooks(url, secret):
    with pytest.raises(ConfigError):
        webhooks.Webhooks([WebhookSettings(url=url, secret=secret)])
