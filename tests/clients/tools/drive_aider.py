"""aider, with a server of its own choice."""

import os
import subprocess
from pathlib import Path

from driver import MODEL, QUESTION, V1, check, run

HOME = Path(os.environ["HOME"])


def start(*args, model=MODEL):
    command = ["aider", "--model", f"openai/{model}", "--openai-api-base", V1]
    command += ["--openai-api-key", "none", "--no-git", "--yes-always", "--no-check-update"]
    command += [
        "--no-show-model-warnings",
        "--no-pretty",
        "--analytics-disable",
        "--map-tokens",
        "0",
    ]
    command += ["--no-show-release-notes", "--analytics-disable", "--no-detect-urls"]
    done = subprocess.run(
        [*command, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=HOME
    )
    return done.stdout + done.stderr


@check
def chat():
    said = start("--no-stream", "--message", f"/ask {QUESTION}")
    assert "Tokens:" in said, said


@check
def stream():
    said = start("--stream", "--message", f"/ask {QUESTION}")
    assert "Tokens:" in said, said


@check
def wrong_model():
    said = start("--message", f"/ask {QUESTION}", model="none-such")
    assert "none-such" in said, said


@check
def long_prompt():
    """It knows that the context is full, and says so."""
    (HOME / "long.txt").write_text("word " * 10_000)
    said = start("--message", "/ask what is this?", "--read", "long.txt")
    assert "token limit" in said, said


run()
