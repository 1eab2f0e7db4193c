"""The curl lines of README.md and docs/serving.md, as they stand, against `penstock serve demo`."""

import json
import os
import re
import shutil
import subprocess

import pytest

import book

COMMANDS = [
    (page, command)
    for page in ("README.md", "docs/serving.md")
    for command in book.commands(page, "curl")
]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@pytest.fixture(scope="module")
def curl(serving, tmp_path_factory):
    """Runs a command of the pages, their port being led to that of the server, which may not be
    free.
    """
    home = tmp_path_factory.mktemp("home")
    with serving("demo", env={"PENSTOCK_CACHE_DIR": str(home / "cache")}) as server:
        settings = ["silent", "show-error", "fail-with-body", "max-time = 60", 'noproxy = "*"']
        settings.append('connect-to = "127.0.0.1:8000:{}:{}"'.format(*server.address))
        (home / ".curlrc").write_text("\n".join(settings))

        def run(command):
            done = subprocess.run(
                ["bash", "-euc", command],
                capture_output=True,
                text=True,
                env={**os.environ, "CURL_HOME": str(home)},
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        yield run
        assert server.stop() == 0


def test_the_pages_show_the_main_endpoints():
    shown = {path for _, command in COMMANDS for path in re.findall(r"8000(/[\w/]+)", command)}
    assert {
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/completions",
        "/v1/models",
    } <= shown
    assert {page for page, _ in COMMANDS} == {"README.md", "docs/serving.md"}


@pytest.mark.parametrize("command", [command for _, command in COMMANDS])
def test_it_works_as_it_stands(curl, command):
    answer = curl(command)
    if "/metrics" in command:
        assert "penstock_requests_total" in answer
    elif '"stream": true' in command:
        events = answer.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] > 0
    else:
        body = json.loads(answer)
        assert "error" not in body or body["error"] is None
        if "json_schema" in command:
            assert set(json.loads(body["choices"][0]["message"]["content"])) == {"category"}
