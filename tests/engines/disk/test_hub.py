"""Fetching from a hub: a stand-in on this machine, asked by Hugging Face's own client."""

import hashlib
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

pytestmark = pytest.mark.convert

COMMIT = "a" * 40
WEIGHTS = bytes(range(256)) * 96_000


class Hub(ThreadingHTTPServer):
    """A hub with one model. `cut` breaks the next transfer of the weights off, `lies` states
    another checksum of them. `ranges` are the places from which the weights were asked for.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Asked)
        self.files = {"config.json": b'{"architectures": ["BertModel"]}', "m.safetensors": WEIGHTS}
        self.cut = self.lies = False
        self.ranges = []

    def described(self):
        siblings = []
        for name, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            about = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith("safetensors"):
                digest = "0" * 64 if self.lies else hashlib.sha256(data).hexdigest()
                about["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(about)
        return {"id": "org/name", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}


class Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def answer(self, head=False):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name"):
            return self.send(200, json.dumps(self.server.described()).encode(), head)
        data = self.server.files.get(path.rpartition("/")[2])
        if not path.startswith(f"/org/name/resolve/{COMMIT}/") or data is None:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}
            return self.send(404, b"{}", head, headers)
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if data is WEIGHTS and not head:
            self.server.ranges.append(start)
            if self.server.cut:
                self.server.cut = False
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                for item in headers.items():
                    self.send_header(*item)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                return None
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(206 if start else 200, data[start:], head, headers)

    def send(self, status, data, head, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for item in (headers or {}).items():
            self.send_header(*item)
        self.end_headers()
        if not head:
            self.wfile.write(data)


@pytest.fixture
def hub():
    server = Hub()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def penstock(tmp_path, monkeypatch):
    """Runs a command with an empty cache; the hub is at the given address."""

    def run(address, *arguments):
        settings = {"HF_HOME": tmp_path / "hf", "PENSTOCK_CACHE_DIR": tmp_path / "ours"}
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name, value in {**settings, "HF_ENDPOINT": address}.items():
            monkeypatch.setenv(name, str(value))
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "penstock.cli", "models", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_pull_list_show_and_remove(hub, penstock):
    address = f"http://127.0.0.1:{hub.server_port}"
    done = penstock(address, "pull", "org/name")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("org/name: 24.6 MB in ")
    assert "fetching org/name: 2 files, 24.6 MB" in done.stderr
    assert penstock(address, "pull", "org/name").returncode == 0
    assert hub.ranges == [0]
    assert "org/name  hub" in penstock(address, "list").stdout
    assert "m.safetensors" in penstock(address, "show", "org/name").stdout
    assert penstock(address, "rm", "org/name").stdout == "removed org/name: 24.6 MB\n"
    assert "org/name" not in penstock(address, "list").stdout


def test_a_transfer_that_was_cut_off_is_continued(hub, penstock):
    hub.cut = True
    address = f"http://127.0.0.1:{hub.server_port}"
    while (done := penstock(address, "pull", "org/name")).returncode:
        assert "The same command continues" in done.stderr
    assert hub.ranges[0] == 0
    assert hub.ranges[-1] > 0


def test_another_checksum(hub, penstock):
    hub.lies = True
    done = penstock(f"http://127.0.0.1:{hub.server_port}", "pull", "org/name")
    assert done.returncode == 1
    assert "'m.safetensors' of 'org/name' differs from the hub's checksum" in done.stderr


def test_no_such_model_and_no_hub(hub, penstock):
    done = penstock(f"http://127.0.0.1:{hub.server_port}", "pull", "org/other")
    assert done.returncode == 1
    assert "does not give 'org/other'" in done.stderr
    done = penstock("http://127.0.0.1:9", "pull", "org/name")
    assert done.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached (offline?)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
