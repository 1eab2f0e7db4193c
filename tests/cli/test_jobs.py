"""`penstock jobs`."""

import json
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner

import penstock
from penstock.batch.monitor import status
from penstock.batch.read.folders import STATE_END
from penstock.cli.commands import cli
from penstock.errors import ConfigError, InputError, JobError, PenstockError, UpstreamError


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A complete job."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": "b"}\n{"other": 1}\n')
    output = tmp_path / 'out"1".jsonl'
    penstock.run(source, output, model="simulated", prompt="{text}", progress=False)
    return output


def said(*arguments):
    return CliRunner().invoke(cli, ["jobs", *map(str, arguments)], catch_exceptions=False).output


def test_a_complete_job_is_listed_and_shown(job):
    head, line = said("list").splitlines()
    assert head.split() == ["job", "state", "rows", "failed", "rows/s", "begun", "output"]
    name = line.split()[0]
    assert line.split()[1:4] == ["complete", "3", "1"]
    assert line.endswith(str(job))
    shown = said("show", name)
    assert "errors             invalid_request_error: 1" in shown
    assert said("show", job, "--follow") == shown
    found = json.loads(said("show", job, "--json"))
    assert (found["state"], found["rows"], found["engine_calls"]) == ("complete", 3, 2)
    assert said("list", job.parent) == said("list")
    assert json.loads(said("list", "--json")) == found


def test_metrics_are_in_prometheus_form(job):
    lines = said("list", "--metrics").splitlines()
    assert "# TYPE penstock_job_rows_total counter" in lines
    (row,) = [line for line in lines if line.startswith("penstock_job_rows_total{")]
    assert row.endswith(',state="complete"} 3')
    assert r"out\"1\".jsonl" in row


@pytest.mark.parametrize("answer", [None, b'{"state": "dreaming"}\n'])
def test_a_job_that_does_not_answer_hides_no_other(job, tmp_path, monkeypatch, answer):
    folder = tmp_path / f"silent.jsonl{STATE_END}"
    folder.mkdir()
    status.register(folder)
    status.save(folder, status.Status(status.id_of(folder), "silent.jsonl", "running", rows=7))
    monkeypatch.setattr("penstock.cli.jobs._PATIENCE_S", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "control.sock"))
        silent.listen()
        if answer is not None:

            def speak():
                with silent.accept()[0] as asked:
                    asked.recv(1 << 16)  # else the reset could overtake the answer
                    asked.sendall(answer)

            speaker = Thread(target=speak)
            speaker.start()
            monkeypatch.setattr("penstock.cli.jobs._PATIENCE_S", 10)
        done = CliRunner().invoke(cli, ["jobs", "list"], catch_exceptions=False)
        if answer is not None:
            speaker.join()
    rows = [line.split()[1:3] for line in done.stdout.splitlines()[1:]]
    assert sorted(rows) == [["complete", "3"], ["running", "7"]]
    assert "what it said last is shown" in done.stderr
    assert ("another version" in done.stderr) is (answer is not None)


def test_the_tail_of_a_complete_job_is_its_output(job):
    assert said("tail", job, "-n", 2) == "".join(job.read_text().splitlines(keepends=True)[1:])


@pytest.mark.parametrize("word", ["pause", "resume", "cancel"])
def test_a_job_that_does_not_run_cannot_be_steered(job, word):
    with pytest.raises(JobError, match="does not run: it is complete"):
        said(word, job)


BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": "file-in",
    "completion_window": "24h",
    "status": "in_progress",
    "output_file_id": "file-out",
    "created_at": 1_700_000_000,
    "request_counts": {"total": 100, "completed": 95, "failed": 5},
    "metadata": None,
}


MESSAGES = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "ended",
    "request_counts": {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 1, "expired": 0},
    "created_at": "2026-05-01T06:00:00Z",
    "results_url": "http://elsewhere/results",
}


@pytest.fixture
def server():
    """The batches of OpenAI's API reference, two pages of them, and one of Anthropic's."""

    class Batches(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self):
            asked.append((self.command, self.path, self.headers.get("authorization")))
            pages = {
                "/v1/batches?limit=100": {"data": [BATCH], "has_more": True},
                "/v1/batches?limit=100&after=batch_1": {
                    "data": [{**BATCH, "id": "batch_2", "status": "completed"}],
                    "has_more": False,
                },
                "/v1/batches/batch_1": BATCH,
                "/v1/batches/batch_1/cancel": {**BATCH, "status": "cancelling"},
                "/v1/batches/batch_1/pause": {**BATCH, "paused": True},
                "/v1/messages/batches?limit=100": {"data": [MESSAGES], "has_more": False},
                "/v1/messages/batches/msgbatch_1": MESSAGES,
            }
            if self.path in STRANGE:
                self.wfile.write(STRANGE[self.path])
                return
            if self.path == "/v1/messages/batches/msgbatch_1/results":
                body, code = b'{"custom_id":"1"}\n', 200
            elif self.path == "/v1/files/file-out/content":
                body, code = b'{"a":1}\n{"a":2}\n{"a":3}\n', 200
            elif self.path in pages:
                body, code = json.dumps(pages[self.path]).encode(), 200
            else:
                body, code = b'{"error": {"message": "No batch found"}}', 404
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

    asked: list[tuple[str, str, str | None]] = []
    with HTTPServer(("127.0.0.1", 0), Batches) as running:
        running.asked = asked  # type: ignore[attr-defined]
        Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def test_the_batches_of_a_server(server):
    url = ("--url", f"http://127.0.0.1:{server.server_port}/v1")
    head, first, second, third = said("list", *url, "--api-key", "k").splitlines()
    assert head.split() == ["batch", "state", "done", "failed", "begun", "endpoint"]
    assert first.split()[:4] == ["batch_1", "in_progress", "95/100", "5"]
    assert second.split()[:2] == ["batch_2", "completed"]
    assert third.split()[:4] == ["msgbatch_1", "ended", "2/4", "1"]
    assert third.split()[-1] == "/v1/messages"
    assert server.asked[0] == ("GET", "/v1/batches?limit=100", "Bearer k")
    assert "request_counts     total: 100, completed: 95, failed: 5" in said(
        "show", "batch_1", *url
    )
    assert said("cancel", "batch_1", *url) == "batch_1  cancelling  95/100  5\n"
    assert server.asked[-1][:2] == ("POST", "/v1/batches/batch_1/cancel")
    assert said("tail", "batch_1", "-n", 2, *url) == '{"a":2}\n{"a":3}\n'
    with pytest.raises(UpstreamError, match="No batch found"):
        said("show", "batch_9", *url)
    assert said("pause", "batch_1", *url) == "batch_1  paused  95/100  5\n"
    with pytest.raises(UpstreamError, match="No batch found"):
        said("resume", "batch_1", *url)
    assert said("list", "--api-key", "k", *url) == said("list", *url, "--api-key", "k")
    with pytest.raises(ConfigError, match="batches of messages cannot be paused"):
        said("pause", "msgbatch_1", *url)
    assert said("tail", "msgbatch_1", *url) == '{"custom_id":"1"}\n'
    assert "processing_status  ended" in said("show", "msgbatch_1", "--follow", *url)


LOOP = b'HTTP/1.0 200 OK\r\n\r\n{"data": [{"id": "a"}], "has_more": true}'
STRANGE = {
    "/html/v1/batches?limit=100": b"HTTP/1.0 200 OK\r\n\r\n<html>",
    "/list/v1/batches?limit=100": b"HTTP/1.0 200 OK\r\n\r\n[]",
    "/empty/v1/batches?limit=100": b"HTTP/1.0 200 OK\r\n\r\n{}",
    "/odd/v1/batches?limit=100": b'HTTP/1.0 200 OK\r\n\r\n{"data": [null]}',
    "/cut/v1/batches?limit=100": b'HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"data": [',
    "/none/v1/batches?limit=100": b"nonsense\r\n\r\n",
    "/gone/v1/batches?limit=100": b"",
    "/loop/v1/batches?limit=100": LOOP,
    "/loop/v1/batches?limit=100&after=a": LOOP,
}


@pytest.mark.parametrize("path", [path for path in STRANGE if path.endswith("100")])
def test_a_server_that_is_none(server, path):
    url = f"http://127.0.0.1:{server.server_port}{path.removesuffix('/v1/batches?limit=100')}"
    with pytest.raises(UpstreamError, match=url):
        said("list", "--url", url)


def test_options_that_do_not_go_together(job):
    for words, match in (
        (("list", "--json", "--metrics"), "not JSON"),
        (("list", "--api-key", "k"), "--url names it"),
        (("show", "x" * 5000), "there is no job 'xxx"),
    ):
        with pytest.raises(PenstockError, match=match):
            said(*words)


def test_a_beginning_of_several_ids(job, monkeypatch, tmp_path):
    known = {"3fa9c1d2": tmp_path, "3fa00000": tmp_path}
    monkeypatch.setattr(status, "known_folders", lambda: iter(known))
    monkeypatch.setattr(status, "id_of", str)
    with pytest.raises(InputError, match="several jobs: 3fa00000, 3fa9c1d2"):
        said("show", "3fa")
