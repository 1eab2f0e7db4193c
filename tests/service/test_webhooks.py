"""What is told of batches that have ended, and how it is signed."""

import asyncio
import base64
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
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
    """A server that answers with these statuses (0: with no HTTP), and what it was sent."""
    got = []
    left = iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(({key.lower(): value for key, value in self.headers.items()}, body))
            if status := next(left, 200):
                self.send_response(status)
                self.end_headers()
            else:
                self.wfile.write(b"this is no HTTP\r\n\r\n")

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


def told(url):
    """Webhooks that have begun to tell of a batch."""
    hooks = webhooks.Webhooks([WebhookSettings(url=url, secret=SECRET)])
    batch: Any = SimpleNamespace(id="batch_1", status="completed")
    hooks.tell(batch)
    return hooks


async def test_no_http_is_no_answer(monkeypatch):
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0, 0.0))
    with receiver([0]) as (url, got):
        await asyncio.gather(*told(url)._sending)
    assert len(got) == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a b", f"http://{'x' * 70}.invalid/"])
async def test_an_address_that_cannot_be_used_is_logged(url, monkeypatch, caplog):
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0, 0.0))
    await asyncio.gather(*told(url)._sending)
    assert "took no batch.completed" in caplog.text


async def test_a_host_that_is_silent_holds_no_threads_of_others(monkeypatch):
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.0,))
    begun, on = threading.Semaphore(0), threading.Event()

    def post(*_: Any) -> None:
        begun.release()
        on.wait()

    monkeypatch.setattr(webhooks, "_post", post)
    hooks = webhooks.Webhooks([WebhookSettings(url="http://127.0.0.1:1/", secret=SECRET)])
    batch: Any = SimpleNamespace(id="batch_1", status="completed")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    try:
        for _ in range(webhooks.MOST_POSTS + 1):
            hooks.tell(batch)
        async with asyncio.timeout(30):
            for _ in range(webhooks.MOST_POSTS):
                await asyncio.to_thread(begun.acquire)
            assert not begun.acquire(blocking=False)
            await hooks.close()
    finally:
        on.set()


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        *(("ftp://x", SECRET), ("http://", SECRET), ("http://x:y/", SECRET)),
        *(("http://x:99999/", SECRET), ("http://[x/", SECRET)),
        *(("http://x", "secret"), ("http://x", "whsec_c2hvcnQ="), ("http://x", "whsec_é")),
    ],
)
def test_wrong_webhooks(url, secret):
    with pytest.raises(ConfigError):
        webhooks.Webhooks([WebhookSettings(url=url, secret=secret)])
