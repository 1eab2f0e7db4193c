"""Large batches, and many of them, on a server in a process of its own."""

import re
import time
from pathlib import Path

import openai
import pytest

from batch_service import ENDED, line, lines
from serve_process import serving, simulated

pytestmark = pytest.mark.slow


def chat(number):
    return line(f"row-{number}", f"say {number} " * 10, model="simulated", temperature=0)


def ended(client, batches):
    waiting = dict.fromkeys(batches)
    while left := [id for id, batch in waiting.items() if batch is None]:
        time.sleep(0.2)
        for id in left:
            batch = client.batches.retrieve(id)
            waiting[id] = batch if batch.status in ENDED else None
    return list(waiting.values())


def submitted(client, given):
    file = client.files.create(file=("in.jsonl", lines(given)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def peak_of_batch(rows, folder):
    """The most memory that a server took for a batch of so many lines, in MiB."""
    # What the engine itself remembers of prompts is not the batch's.
    engine = simulated(kv_cache_blocks=512)
    with serving(*engine, "--batch-dir", str(folder)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        (batch,) = ended(client, [submitted(client, map(chat, range(rows)))])
        assert batch.request_counts.completed == rows
        content = client.files.content(batch.output_file_id).content
        assert content.count(b"\n") == rows
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_lines(tmp_path):
    few, many = peak_of_batch(5_000, tmp_path / "few"), peak_of_batch(50_000, tmp_path / "many")
    print(f"5,000 lines: {few:.0f} MiB, 50,000 lines: {many:.0f} MiB, {many / few:.2f} x")
    assert many <= 1.2 * few


def test_a_hundred_batches(tmp_path):
    with serving(*simulated(), "--batch-dir", str(tmp_path / "state")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        ids = [submitted(client, map(chat, range(100))) for _ in range(100)]
        batches = ended(client, ids)
        assert {one.status for one in batches} == {"completed"}
        assert {one.request_counts.completed for one in batches} == {100}
