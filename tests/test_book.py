"""What the pages tell people to type works as it stands. The two set-up lines are run by .ci/run.

Of the guides (README.md, docs/start.md, docs/tutorial.md, docs/howto) all blocks run, in one folder
from top to bottom: bash, python, and `serve`, which starts the server for those below it. A block
`output` is what the block above it prints. A comment with a name begins the block of a file. On the
other pages each command and each program runs by itself. What cannot run here is a block `sh`, and
its page says so: tests/test_book_kinds.py holds that for all pages, tests/support/book.py says
which test runs which.
"""

import json
import re
import shlex
import shutil
import sys
import threading
from contextlib import ExitStack, chdir, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import book
from book import blocks, run
from penstock.demo import model_path, tickets_path
from serve_process import serving, simulated
from speech_models import hearing_model, speaking_model
from word_models import CONTEXT, embedding_model

pytestmark = pytest.mark.slow

AT = "127.0.0.1:8000"
PROVIDERS = {  # whose keys the commands name, and where they are asked
    "--engine openai-batch": {"first_poll_s": 0.5},
    "--engine anthropic-batch": {"first_poll_s": 0.5},
    "--engine remote": {},
}
NAMES = ("gpt-4.1-mini", "gpt-5-mini", "claude-haiku-4-5")


@pytest.fixture
def folder(tmp_path):
    shutil.copy(tickets_path(), tmp_path / "tickets.jsonl")
    (tmp_path / "minilm").mkdir()
    config = Path(embedding_model(tmp_path / "minilm")) / "config.json"
    config.write_text(config.read_text().replace(f": {CONTEXT}", ": 512"))
    hearing_model(tmp_path)
    speaking_model(tmp_path)
    (tmp_path / "large-model").symlink_to(model_path())
    for page in (*book.COMMANDS, *book.GUIDES):
        for body in (*blocks(page, "yaml"), *blocks(page, "json")):
            name, _, content = body.partition("\n")
            if name.startswith("# "):  # a file, by its name
                (tmp_path / name[2:]).write_text(content)
    return tmp_path


LINES = [
    line.replace("\\\n", "")
    for page in book.COMMANDS
    for line in book.commands(page, "penstock")
    if "--engine vllm" not in line and not line.startswith("penstock serve")  # has no end
]


@contextmanager
def as_shown(line, folder):
    """The command, with servers where it expects them: a provider's is the demo model under the
    provider's names, and those that are measured have a simulated engine.
    """
    options = ["demo", "--served-model-name", "demo", *NAMES, "--batch-dir", f"{folder}/kept"]
    with ExitStack() as ends:
        if "penstock bench serve" in line:
            for at in sorted(set(re.findall(r"127\.0\.0\.1:\d+", line))):
                line = line.replace(at, ends.enter_context(serving(*simulated())).url[7:])
        elif provider := next((one for one in PROVIDERS if one in line), None):
            server = ends.enter_context(serving(*options))
            here = {"base_url": f"{server.url}/v1", "api_key_env": None, **PROVIDERS[provider]}
            line, _, _ = line.partition("--engine-kwargs")
            line += f" --engine-kwargs '{json.dumps(here)}'"
        elif AT in line:
            line = line.replace(AT, ends.enter_context(serving(*options)).url[7:])
        yield line


@pytest.mark.parametrize("line", LINES)
def test_commands(line, folder):
    with as_shown(line, folder) as command:
        run(["bash", "-euc", command], folder)


@pytest.mark.parametrize("block", blocks("docs/serving.md", "serve"))
def test_what_serves_starts(block, tmp_path):
    _, _, *options = shlex.split(block.replace("~", str(tmp_path)))
    with serving(*options) as server:
        assert server.stop() == 0


@pytest.mark.parametrize("page", book.PROGRAMS)
def test_python(page, folder):
    for code in blocks(page, "python"):
        run([sys.executable, "-c", code], folder)


@pytest.mark.parametrize("page", book.ASKING)
def test_python_that_asks_a_server(page, folder):
    (folder / "lines.jsonl").write_text("".join(blocks("docs/batch-api.md", "json")))
    with serving("demo", "--store", f"{folder}/kept.db", "--batch-dir", f"{folder}/kept") as server:
        for code in blocks(page, "python"):
            at = server.url.removeprefix("http://")
            run([sys.executable, "-c", code.replace("localhost:8000", at)], folder)


def test_python_that_asks_an_endpoint(folder, monkeypatch):
    keys = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            keys.append(self.headers["Authorization"])
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"score": len(asked["text"])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    (folder / "rows.jsonl").write_text('{"text": "four"}\n')
    monkeypatch.setenv("API_KEY", "sesame")
    (code,) = blocks(book.ENDPOINT, "python")
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        code = code.replace("https://api.example.com", f"http://127.0.0.1:{endpoint.server_port}")
        assert run([sys.executable, "-c", code], folder) == "ok {'score': 4} None\n"
        endpoint.shutdown()
    assert keys == ["Bearer sesame"]


@pytest.mark.parametrize("page", book.GUIDES)
def test_guide(page, folder):
    at, printed = AT, None
    with ExitStack() as ends:
        for language, body in book.BLOCK.findall(book.text(page)):
            code = body.replace(AT, at)
            if language == "serve":
                _, _, *options = shlex.split(code)
                with chdir(folder):
                    server = ends.enter_context(serving(*options))
                at = server.url.removeprefix("http://")
            elif language == "bash":
                printed = run(["bash", "-euo", "pipefail", "-c", code], folder)
            elif language == "python":
                printed = run([sys.executable, "-c", code], folder)
                assert printed
            elif language == "output":
                assert printed == body
