"""Deaths of the real process: by requests, and by whoever sends it signals."""

import asyncio
import json
import os
import random
import signal

import pytest

import penstock
from penstock.batch import OpenVINOEngineProcessorConfig, build_processor
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.process import Submit
from penstock.errors import QuarantinedError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import LocalModel
from penstock.testing import answer, chat_request
from penstock.types import Sampling

pytestmark = pytest.mark.slow
GREEDY = Sampling(temperature=0.0, max_tokens=12)
OPTIONS = {"kv_cache_memory_bytes": 32 << 20, "max_num_seqs": 16}


def kill(engine, sent):
    assert engine._process is not None
    pid = engine._process.pid
    assert pid is not None
    os.kill(pid, sent)


class Mortal(OpenVINOEngine):
    """Its process is killed by each prompt that holds "fatal"."""

    sent = signal.SIGSEGV

    def _send(self, message):
        super()._send(message)
        if isinstance(message, Submit) and "fatal" in str(message.prompt):
            kill(self, self.sent)


def rows(fatal):
    return [
        {"id": n, "text": f"{'a fatal' if n in fatal else 'a'} ticket, number {n}"}
        for n in range(80)
    ]


@pytest.mark.parametrize(
    "sent", [signal.SIGSEGV, pytest.param(signal.SIGKILL, marks=pytest.mark.nightly)]
)
async def test_rows_that_kill_cost_themselves_alone(tmp_path, monkeypatch, sent):
    monkeypatch.setattr(Mortal, "sent", sent)
    fatal, output = {3, 40, 41, 79}, tmp_path / "out.jsonl"
    engine = Mortal("demo", engine_kwargs=OPTIONS)
    await penstock.arun(
        rows(fatal), output, engine=engine, prompt="{text}", max_tokens=12, progress=False
    )
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["id"]: row["error"]["type"] for row in found if row["error"]} == dict.fromkeys(
        fatal, "quarantined"
    )
    assert len(found) == 80


async def test_a_processor_too():
    engine = Mortal("demo", engine_kwargs=OPTIONS)
    config = OpenVINOEngineProcessorConfig(engine=engine, should_continue_on_error=True)
    params = {"temperature": 0.0, "max_tokens": 12}
    processor = build_processor(
        config, lambda row: {"prompt": row["text"], "sampling_params": params}
    )
    found = [row async for row in processor(rows({0, 1, 50}))]
    assert {row["id"] for row in found if row["status"] == "error"} == {0, 1, 50}


async def test_served_requests_that_kill_are_refused_and_the_others_answered():
    config = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": "m"}, "llm_engine": "openvino"}
    )
    model = LocalModel(config, engine=Mortal("demo", engine_kwargs=OPTIONS))
    await model.start()

    async def outcome(row):
        try:
            return (await answer(model, chat_request(row["text"], GREEDY, stream=False))).texts[0]
        except QuarantinedError:
            return None

    asked = rows({5, 6, 70})
    found = await asyncio.gather(*map(outcome, asked))
    assert [row["id"] for row, text in zip(asked, found, strict=True) if text is None] == [5, 6, 70]
    assert model.state().state == "ready"
    await model.stop()


async def test_kills_from_outside_charge_no_row(tmp_path):
    rng, output = random.Random(4), tmp_path / "out.jsonl"
    engine = OpenVINOEngine("demo", engine_kwargs=OPTIONS)
    kills = 0

    async def killer():
        nonlocal kills
        while kills < 8:
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            if engine._process is not None and engine._mailboxes:
                kill(engine, signal.SIGKILL)
                kills += 1

    many = [{"id": n, "text": f"a ticket, number {n}"} for n in range(2000)]
    killing = asyncio.create_task(killer())
    result = await penstock.arun(
        many, output, engine=engine, prompt="{text}", max_tokens=40, progress=False
    )
    killing.cancel()
    assert (result.counts.ok, result.counts.failed) == (2000, 0)
    assert kills >= 3
