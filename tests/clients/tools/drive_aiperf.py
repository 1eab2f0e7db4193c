"""AIPerf: a few requests of each kind."""

import json
import os
import subprocess
from pathlib import Path

from driver import EMBEDDER, MODEL, QUESTION, URL, check, run

# A small model may talk until its context is full.
LIMITS = {
    "chat": "max_tokens:64",
    "completions": "max_tokens:8",
    "responses": "max_output_tokens:64",
}
TOKENIZER = os.environ["SERVER_TOKENIZER"]  # of any model: it counts what the server counts
HOME = Path(os.environ["HOME"])
(HOME / "rows.jsonl").write_text(f"{json.dumps({'text': QUESTION})}\n" * 3)


def measured(kind, *more, model=MODEL):
    folder = HOME / f"{kind}{len(more)}"
    command = ["aiperf", "profile", "-m", model, "-u", URL, "--endpoint-type", kind]
    command += ["--input-file", "rows.jsonl", "--custom-dataset-type", "single_turn"]
    command += ["--request-count", "3", "--concurrency", "2", "--use-server-token-count"]
    command += ["--tokenizer", TOKENIZER, "--output-artifact-dir", str(folder), "--ui", "none"]
    if kind in LIMITS:
        command += ["--extra-inputs", LIMITS[kind]]
    done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=HOME)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((folder / "profile_export_aiperf.json").read_text())
    assert found["request_count"]["avg"] == 3, found
    assert not found.get("error_request_count", {}).get("avg"), found
    return found


@check
def chat():
    assert measured("chat")["output_sequence_length"]["avg"] > 0


@check
def stream():
    found = measured("chat", "--streaming")
    assert found["output_sequence_length"]["avg"] > 0
    assert found["time_to_first_token"]["avg"] > 0


@check
def chunk_usage():
    measured("chat", "--streaming", "--per-chunk-usage")


@check
def completions():
    # The question alone may be all that there is to say.
    more = ["--extra-inputs", "ignore_eos:true"]
    assert measured("completions", "--streaming", *more)["output_sequence_length"]["avg"] == 8


@check
def responses():
    # To AIPerf an answer that the limit cuts has failed.
    measured("responses", "--streaming", "--extra-inputs", "temperature:0")


@check
def embeddings():
    (HOME / "rows.jsonl").write_text('{"text": "red fox"}\n' * 3)
    measured("embeddings", model=EMBEDDER)


run()
