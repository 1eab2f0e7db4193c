"""The examples run."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_a_stage_of_ones_own():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_stage.py"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "engineering" in done.stdout
    assert "accounting" in done.stdout


async def test_an_http_endpoint(tmp_path, monkeypatch):
    from aiohttp import web
    from aiohttp.test_utils import TestServer

    async def answer(request):
        assert request.headers["Authorization"] == "Bearer secret"
        question = (await request.json())["messages"][0]["content"]
        return web.json_response({"choices": [{"message": {"content": question.upper()}}]})

    app = web.Application()
    app.router.add_post("/", answer)
    (tmp_path / "in.jsonl").write_text('{"question": "a"}\n{"question": "b"}\n')
    async with TestServer(app) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            EXAMPLES / "http_endpoint.py",
            str(server.make_url("/")),
            str(tmp_path / "in.jsonl"),
            str(tmp_path / "out.jsonl"),
            env={**os.environ, "OPENAI_API_KEY": "secret"},
        )
        assert await process.wait() == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["A", "B"]
    assert "secret" not in "".join(
        p.read_text() for p in (tmp_path / "out.jsonl.penstock").iterdir() if p.is_file()
    )


@pytest.mark.slow
def test_search_in_vectors(tmp_path):
    from word_models import embedding_model

    (tmp_path / "model").mkdir()
    model = embedding_model(tmp_path / "model")
    texts = ["red fox", "green hill", "blue sea", "red dog"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "search_vectors.py", model, "in.jsonl", "text", "sea", "fox"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "blue sea" in lines[lines.index("numpy · sea") + 1]
    assert "red fox" in lines[lines.index("numpy · fox") + 1]
