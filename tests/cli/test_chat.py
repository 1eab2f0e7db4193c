"""`penstock chat` against a server that answers as told."""

import io
import json
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.error import HTTPError

import pytest
from click.testing import CliRunner

from penstock.cli.chat import chat
from penstock.errors import UpstreamError
from penstock.serve.client import Client


@pytest.fixture
def server():
    """Its URL, the answers that it gives (None: status 503), and the messages that it got."""
    answers: list[bytes | None] = []
    asked: list[list[str]] = []

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append([one["content"] for one in json.loads(body)["messages"]])
            answer = answers.pop(0)
            self.send_response(503 if answer is None else 200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(answer or b'{"error": {"message": "it is busy"}}')

    with HTTPServer(("127.0.0.1", 0), Answers) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}", answers, asked
        made.shutdown()


def event(text, blank=b" "):
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
    return b"data:" + blank + chunk + b"\n\n"


@pytest.mark.parametrize("blank", [b"", b" "])
def test_events_are_read_with_a_blank_and_without(server, blank):
    url, answers, _ = server
    answers.append(event("hel", blank) + b": x\n\ndata:\n\n" + event("lo") + b"data:[DONE]\n\n")
    done = CliRunner().invoke(chat, ["--url", url, "--model", "m"], input="hi\n")
    assert done.stdout == "hello\n"


def test_a_refusal_ends_no_conversation(server, monkeypatch):
    monkeypatch.setattr("penstock.cli.chat._is_typed", lambda: True)
    url, answers, asked = server
    answers += [event("one"), None, event("three")]
    done = CliRunner().invoke(chat, ["--url", url, "--model", "m"], input="1\n2\n3\n")
    assert done.exit_code == 0
    assert "it is busy" in done.stderr
    assert asked == [["1"], ["1", "one", "2"], ["1", "one", "3"]]


def test_a_refusal_ends_what_nobody_types(server):
    url, answers, _ = server
    answers.append(None)
    done = CliRunner().invoke(chat, ["--url", url, "--model", "m"], input="1\n2\n")
    assert isinstance(done.exception, UpstreamError)


def test_a_missing_key_is_told_to_users_of_the_command_and_of_python(monkeypatch):
    def refused(request, timeout):
        raise HTTPError(request.full_url, 401, "", Message(), io.BytesIO(b"{}"))

    monkeypatch.setattr("penstock.serve.client.opened", refused)
    with pytest.raises(UpstreamError, match="--api-key KEY or PENSTOCK_API_KEY, Python as api_key"):
        Client("http://127.0.0.1:1").models()
