"""GuideLLM: a few requests of each kind, in turn."""

import json
import os
import subprocess
from pathlib import Path

from driver import MODEL, QUESTION, URL, check, run

HOME = Path(os.environ["HOME"])
(HOME / "rows.jsonl").write_text(f"{json.dumps({'prompt': QUESTION})}\n" * 3)


def measured(**fields):
    about = {"kind": "openai_http", "target": URL, "model": MODEL, **fields}
    about["max_tokens"] = 64  # a small model may talk until its context is full
    command = ["guidellm", "run", "--backend", ",".join(f"{k}={v}" for k, v in about.items())]
    command += ["--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"]
    command += ["--data", "kind=json_file,path=rows.jsonl"]
    command += ["--output", "kind=json,path=out.json", "--disable-console"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HOME)
    assert done.returncode == 0, done.stderr[-3000:]
    (benchmark,) = json.loads((HOME / "out.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (3, 0), totals
    return benchmark["metrics"]


@check
def chat():
    metrics = measured(request_format="/v1/chat/completions", stream="false")
    assert metrics["output_token_count"]["successful"]["mean"] > 0


@check
def stream():
    metrics = measured(request_format="/v1/chat/completions")
    assert metrics["output_token_count"]["successful"]["mean"] > 0
    assert metrics["time_to_first_token_ms"]["successful"]["mean"] > 0


@check
def completions():
    measured(request_format="/v1/completions")


@check
def responses():
    measured(request_format="/v1/responses")


run()
