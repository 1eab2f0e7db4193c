"""Servers that are killed while they run a batch, and started again."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from batch_service import ENDED, line, lines
from serve_process import serving, simulated

pytestmark = pytest.mark.slow
SUPPORT = Path(__file__).parents[1] / "support"
LINES, IN_FLIGHT = 3000, 20


def given():
    for number in range(LINES):
        wrong: dict[str, Any] = (
            {"max_tokens": -1} if number % 50 == 7 else {"max_tokens": 4, "temperature": 0}
        )
        yield line(f"row-{number}", f"say {number}", model="simulated", **wrong)


class Life:
    """Servers one after another on the same state."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.noted = folder / "prompts"
        path = os.pathsep.join((str(SUPPORT), os.environ.get("PYTHONPATH", "")))
        self.env = {
            "PENSTOCK_ENGINE_CLS": "noting_engine.NotingEngine",
            "NOTED_PROMPTS": str(self.noted),
            "PYTHONPATH": path,
        }

    def serving(self):
        slow = simulated(time_per_token_ms=2.0, max_num_seqs=16)
        return serving(*slow, "--batch-dir", str(self.folder / "state"), env=self.env)

    def output(self, server, batch):
        """The files of a batch, without the times."""
        client = client_of(server)
        while (now := client.batches.retrieve(batch)).status not in ENDED:
            time.sleep(0.1)
        assert now.status == "completed", now
        found = []
        for id in (now.output_file_id, now.error_file_id):
            for text in client.files.content(id).text.splitlines():
                one = json.loads(text)
                one["response"]["body"].pop("created", None)
                found.append(one)
        return now.request_counts.to_dict(), found


def client_of(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3)


def submitted(server):
    client = client_of(server)
    file = client.files.create(file=("in.jsonl", lines(given())), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id


def test_a_killed_server_goes_on_with_its_batches(tmp_path):
    plain = Life(tmp_path / "plain")
    with plain.serving() as server:
        began = time.monotonic()
        expected = plain.output(server, submitted(server))
        took = time.monotonic() - began
    killed = Life(tmp_path / "killed")
    batch, kills = None, 10
    chance = random.Random(20)
    for _ in range(kills):
        with killed.serving() as server:
            batch = batch or submitted(server)
            time.sleep(chance.uniform(0.0, 2 * took / kills))
            server.stop(signal.SIGKILL)
    with killed.serving() as server:
        assert killed.output(server, batch) == expected
    asked = Counter(killed.noted.read_text().splitlines())
    assert len(asked) == LINES * 49 // 50
    assert sum(asked.values()) - len(asked) <= kills * IN_FLIGHT
