"""promptfoo: an evaluation through each of its providers that can be pointed at a server."""

import json
import os
import subprocess
from pathlib import Path

from driver import EMBEDDER, MODEL, PARAMETERS, QUESTION, TOOL, URL, V1, check, routed, run, same

HOME = Path(os.environ["HOME"])
OPENAI = {"apiBaseUrl": V1, "apiKey": "none", "temperature": 0, "max_tokens": 100}
CLAUDE = {"apiBaseUrl": URL, "apiKey": "none", "temperature": 0, "max_tokens": 100}


def evaluated(provider, tests=({},), question=QUESTION, **config):
    about = {
        "prompts": ["{{question}}"],
        "providers": [{"id": provider, "config": config}],
        "tests": [{"vars": {"question": question}, **test} for test in tests],
    }
    (HOME / "promptfooconfig.json").write_text(json.dumps(about))
    command = ["promptfoo", "eval", "-c", "promptfooconfig.json", "-o", "out.json"]
    command += ["--no-cache", "--no-write", "--no-progress-bar", "--no-table"]
    (HOME / "out.json").unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=HOME)
    assert (HOME / "out.json").exists(), done.stdout + done.stderr
    return json.loads((HOME / "out.json").read_text())["results"]["results"]


def answered(*args, **config):
    (result,) = evaluated(*args, **config)
    assert not result.get("error"), result["error"]
    return result["response"]


@check
def chat():
    for provider, config in [
        (f"openai:chat:{MODEL}", OPENAI),
        (f"openai:responses:{MODEL}", OPENAI),
        (f"anthropic:messages:{MODEL}", CLAUDE),
    ]:
        output = answered(provider, **config)["output"]
        same(json.dumps(output, separators=(",", ":")) if isinstance(output, dict) else output)


@check
def tools():
    response = answered(f"openai:chat:{MODEL}", **OPENAI, tools=[TOOL], tool_choice="required")
    (call,) = response["output"]
    routed(json.loads(call["function"]["arguments"]))


@check
def structured():
    schema = {"name": "ticket", "strict": True, "schema": PARAMETERS}
    response = answered(
        f"openai:chat:{MODEL}",
        **OPENAI,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    routed(response["output"])


@check
def embeddings():
    similar = {
        "assert": [
            {
                "type": "similar",
                "value": "red fox",
                "threshold": -1,
                "provider": {
                    "id": f"openai:embedding:{EMBEDDER}",
                    "config": {"apiBaseUrl": V1, "apiKey": "none"},
                },
            }
        ]
    }
    (result,) = evaluated("echo", tests=[similar], question="red")
    assert "Similarity" in result["gradingResult"]["componentResults"][0]["reason"], result


@check
def wrong_model():
    (result,) = evaluated("openai:chat:none-such", **OPENAI)
    assert "none-such" in result["error"], result


@check
def wrong_parameter():
    (result,) = evaluated(f"openai:chat:{MODEL}", **OPENAI, top_p=3)
    assert "top_p" in result["error"], result


@check
def long_prompt():
    (result,) = evaluated(f"openai:chat:{MODEL}", question="word " * 10_000, **OPENAI)
    assert "context" in result["error"], result


run()
