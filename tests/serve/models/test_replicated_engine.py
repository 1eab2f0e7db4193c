"""A job on several replicas of an engine, on one machine."""

import json
import os
import signal

import pytest

import penstock
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import ConfigError, EngineDeadError
from penstock.serve.models.replicated_engine import ReplicatedEngine
from penstock.testing import answer, chat_request
from random_model import TINY, write_random_model


def rows(count):
    return [{"id": number, "text": f"text {number}"} for number in range(count)]


def run(source, output, **options):
    return penstock.run(source, output, prompt="{text}", progress=False, **options)


async def test_its_replicas_answer_and_end_with_it():
    engine = ReplicatedEngine(
        SimulatedEngine(engine_kwargs={"max_num_seqs": 8, "time_per_token_ms": 1.0}), 3
    )
    with pytest.raises(EngineDeadError):
        await engine.check_health()
    await engine.start()
    await engine.check_health()
    assert engine.capabilities.max_concurrency == 24
    assert (await answer(engine, chat_request("x"))).texts[0]
    await engine.stop()
    with pytest.raises(EngineDeadError):
        await engine.check_health()


def test_a_job_has_the_rows_of_one_engine(tmp_path):
    outputs = []
    for replicas in (1, 2):
        output = tmp_path / f"{replicas}.jsonl"
        result = run(rows(100), output, model="simulated", engine="simulated", replicas=replicas)
        assert result.counts.ok == 100
        lines = map(json.loads, output.read_text().splitlines())
        outputs.append([(line["id"], line["response"]) for line in lines])
    assert outputs[0] == outputs[1]


def test_an_engine_object_has_no_replicas(tmp_path):
    with pytest.raises(ConfigError, match="replicas are in others"):
        run(rows(1), tmp_path / "o.jsonl", engine=SimulatedEngine(), replicas=2)


def test_what_runs_elsewhere_has_no_replicas_here(tmp_path):
    with pytest.raises(ConfigError, match="runs elsewhere or on accelerators"):
        run(
            rows(1),
            tmp_path / "o.jsonl",
            model="m",
            engine="remote",
            replicas=2,
            engine_kwargs={"base_url": "http://127.0.0.1:1/v1"},
        )


def test_replicas_are_of_engines_that_the_job_starts(tmp_path):
    with pytest.raises(ConfigError, match="replicas"):
        run(rows(1), tmp_path / "o.jsonl", attach="http://127.0.0.1:1", replicas=2)


@pytest.mark.slow
def test_a_job_survives_the_death_of_a_replica(tmp_path, monkeypatch):
    """A replica's process is killed while it has rows; no row is lost."""
    model = tmp_path / "tiny.gguf"
    write_random_model(model, TINY)
    killed = []
    made = ReplicatedEngine.start

    async def start(self):
        await made(self)
        generate = self.generate

        def counting(request):
            started.append(request)
            if len(started) == 60:
                process = self._model.crew.replicas[0].model.server.engine._process
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
            return generate(request)

        self.generate = counting

    started: list[object] = []
    monkeypatch.setattr(ReplicatedEngine, "start", start)
    result = run(
        rows(120),
        tmp_path / "out.jsonl",
        model=str(model),
        engine_kwargs={"max_num_seqs": 8, "kv_cache_memory_bytes": 64 << 20},
        replicas=2,
        max_tokens=16,
        temperature=0.0,
    )
    assert killed
    assert (result.counts.ok, result.counts.rows) == (120, 120)
