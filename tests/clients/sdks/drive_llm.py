"""The `llm` command, with a model of its configuration file, and its Python interface."""

import json
import os
import subprocess
from pathlib import Path

MODELS = Path(os.environ["HOME"]) / "llm"
os.environ["LLM_USER_PATH"] = str(MODELS)

from driver import (  # noqa: E402
    MODEL,
    PARAMETERS,
    QUESTION,
    TOO_LONG,
    V1,
    check,
    routed,
    run,
    same,
)

MODELS.mkdir()
(MODELS / "keys.json").write_text(json.dumps({"penstock": "none"}))
CARD = {
    "api_base": V1,
    "api_key_name": "penstock",
    "supports_tools": True,
    "supports_schema": True,
}
(MODELS / "extra-openai-models.yaml").write_text(
    json.dumps(  # JSON is YAML
        [
            {"model_id": "served", "model_name": MODEL, **CARD},
            {"model_id": "wrong", "model_name": "none-such", **CARD},
        ]
    )
)
GREEDY = ["-o", "temperature", "0", "-o", "max_tokens", "200"]


def start(*args, model="served"):
    return subprocess.run(
        ["llm", "-m", model, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def command(*args, model="served", fails=False):
    done = start(*args, model=model)
    assert (done.returncode != 0) == fails, done.stderr
    return (done.stderr if fails else done.stdout).strip()


@check
def chat():
    same(command(QUESTION, "--no-stream", *GREEDY))


@check
def stream():
    same(command(QUESTION, *GREEDY))


@check
def structured():
    routed(json.loads(command(QUESTION, "--schema", json.dumps(PARAMETERS), *GREEDY)))


@check
def tools():
    """It offers tools, and leaves to the model whether it calls them."""
    functions = "def route(urgent: bool) -> str:\n    return 'done'"
    done = start(QUESTION, "--functions", functions, "--chain-limit", "2", *GREEDY)
    assert done.returncode == 0 or "Chain limit" in done.stderr, done.stderr


@check
def wrong_model():
    assert "none-such" in command(QUESTION, model="wrong", fails=True)


@check
def wrong_parameter():
    assert "top_p" in command(QUESTION, "-o", "top_p", "3", fails=True)


@check
def long_prompt():
    assert "context" in command(TOO_LONG, *GREEDY, fails=True)


run()
