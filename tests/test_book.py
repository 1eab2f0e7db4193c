"""What the pages tell people to type works as it stands. The two set-up lines are run by .ci/run.

Of the guides (README.md, docs/start.md, docs/tutorial.md, docs/howto) all blocks run, in one folder
from top to bottom: bash, python, and `serve`, which starts the server for those below it. A block
`output` is what the block above it prints. A comment with a name begins the block of a file. What
cannot run here is a block `sh`, and its page says so.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, chdir, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from penstock.demo import tickets_path
from serve_process import serving
from speech_models import hearing_model, speaking_model
from word_models import CONTEXT, embedding_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = ("docs/batch.md", "docs/decisions.md")
ASKING = ("docs/batch-api.md", "docs/serving.md")  # their programs ask a server
GUIDES = [
    "README.md",
    "docs/start.md",
    "docs/tutorial.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/howto/*.md")),
]
AT = "127.0.0.1:8000"


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for name, body in BLOCK.findall(text) if name == language]


@pytest.fixture
def folder(tmp_path):
    shutil.copy(tickets_path(), tmp_path / "tickets.jsonl")
    (tmp_path / "minilm").mkdir()
    config = Path(embedding_model(tmp_path / "minilm")) / "config.json"
    config.write_text(config.read_text().replace(f": {CONTEXT}", ": 512"))
    hearing_model(tmp_path)
    speaking_model(tmp_path)
    for page in (*PAGES, *GUIDES):
        for body in (*blocks(page, "yaml"), *blocks(page, "json")):
            name, _, content = body.partition("\n")
            if name.startswith("# "):  # a file, by its name
                (tmp_path / name[2:]).write_text(content)
    return tmp_path


def run(argv, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMANDS = [
    line
    for page in PAGES
    for block in blocks(page, "")
    for line in block.splitlines()
    # Has no end.
    if line.startswith("penstock ")
    and "INPUT" not in line
    and not line.endswith("\\")
    and not line.startswith("penstock serve")
]


def test_there_are_commands():
    assert any(line.startswith("penstock run") for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, folder):
    provider = "openai-batch" in line
    # The demo model stands for the provider's.
    options = ("demo", "--served-model-name", "demo", "gpt-5-mini", "--batch-dir", f"{folder}/kept")
    with serving(*options) if provider or AT in line else nullcontext() as server:
        at = server.url.removeprefix("http://") if server else AT
        if provider:
            here = {"base_url": f"http://{at}/v1", "first_poll_s": 0.5}
            line += f" --engine-kwargs '{json.dumps(here)}'"
        run(["bash", "-euc", line.replace(AT, at)], folder)


@pytest.mark.parametrize("page", [*PAGES, "docs/processors.md"])
def test_python(page, folder):
    for code in blocks(page, "python"):
        run([sys.executable, "-c", code], folder)


@pytest.mark.parametrize("page", ASKING)
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
    (code,) = blocks("docs/http.md", "python")
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        code = code.replace("https://api.example.com", f"http://127.0.0.1:{endpoint.server_port}")
        assert run([sys.executable, "-c", code], folder) == "ok {'score': 4} None\n"
        endpoint.shutdown()
    assert keys == ["Bearer sesame"]


@pytest.mark.parametrize("page", GUIDES)
def test_guide(page, folder):
    text = (ROOT / page).read_text(encoding="utf-8")
    at, printed = AT, None
    with ExitStack() as ends:
        for language, body in BLOCK.findall(text):
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


@pytest.mark.parametrize("page", GUIDES)
def test_blocks_have_a_kind(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    kinds = {language for language, _ in BLOCK.findall(text)}
    assert kinds <= {"bash", "python", "serve", "output", "yaml", "json", "sh"} | (
        {""} if page == "README.md" else set()
    )
    if "sh" in kinds:
        assert re.search(r"\bnot\s+run\b|run by `\.ci/run`", text, re.IGNORECASE)
