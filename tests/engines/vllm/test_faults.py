"""What happens when a process of vLLM's, or the one that started it, is killed or told to stop."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from penstock import demo
from penstock.engines.vllm.engine import VLLMEngine
from penstock.engines.vllm.processes import SHARED_MEMORY, marked
from penstock.errors import EngineDeadError
from penstock.llm_config import LLMConfig
from penstock.serve.models.local import build_local_handles
from penstock.testing import answer, chat_request, deltas_of
from penstock.types import Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ENDLESS = Sampling(temperature=0.0, max_tokens=2000, ignore_eos=True)
GREEDY = Sampling(temperature=0.0, max_tokens=60)
TEXT = "My Solara 77 arrived broken and nobody answers. I want my money back!"
PATIENCE = 120.0
START_PATIENCE = 600.0
"""For what waits until vLLM has started again, which takes minutes on a busy machine."""


@pytest.fixture(autouse=True)
def _no_leftovers():
    """Whatever a test does to processes, no process of an engine and no shared memory is there when
    it ends.
    """
    before = set(os.listdir(SHARED_MEMORY))
    yield
    gc.collect()
    wait_until(lambda: set(os.listdir(SHARED_MEMORY)) <= before)
    assert not descendants(os.getpid(), "VLLM::")


def wait_until(so):
    """A process that was killed, or is about to end, announces it to nobody here."""
    patience = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < patience
        time.sleep(0.02)


def descendants(parent, what):
    """Ids of the processes below `parent` whose command line has `what` in it."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    for pid in parents:
        above = pid
        while above in parents and above != parent:
            above = parents[above]
        if above == parent and pid != parent and what in command_line(pid):
            found.append(pid)
    return found


def zombies():
    """Ids of ended children that nobody has asked about."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it is gone altogether
            if path.read_text().rpartition(")")[2].split()[:2] == ["Z", str(os.getpid())]:
                found.append(path.parent.name)
    return found


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def test_a_server_starts_a_killed_engine_again_as_it_was():
    config = LLMConfig.from_dict(
        {
            "model_loading_config": {"model_id": "demo", "model_source": "demo"},
            "llm_engine": "vLLM",
            "engine_kwargs": {"max_num_seqs": 1},
            "lora_config": {"max_num_adapters_per_replica": 2},
        }
    )
    handle: Any = build_local_handles([config])["demo"]
    await handle.start()
    asked = {name: chat_request(TEXT, GREEDY, adapter=name) for name in (None, "german")}
    texts = {name: (await answer(handle, request)).texts for name, request in asked.items()}
    (worker,) = descendants(os.getpid(), "VLLM::Worker")
    async with aclosing(handle.chat(chat_request(TEXT, ENDLESS))) as stream:
        await anext(stream)
        waiting = {
            name: asyncio.create_task(answer(handle, request, patience=START_PATIENCE))
            for name, request in asked.items()
        }
        await (
            handle.server.engine.check_health()
        )  # meanwhile the first of them has come to vLLM, behind the one that runs
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await rest(stream)
    # They had no token yet.
    assert {name: (await task).texts for name, task in waiting.items()} == texts
    assert handle.server.supervisor.generation == 2

    async with aclosing(handle.chat(chat_request(TEXT, ENDLESS))) as stream:
        await anext(stream)
        (told,) = await handle.control("pause", {"mode": "keep"})
        assert told["ok"], told
        (core,) = descendants(os.getpid(), "VLLM::EngineCore")
        os.kill(core, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            await rest(stream)
    await handle.server.supervisor.ready()
    assert await handle.server.engine.is_paused()
    held = asyncio.create_task(answer(handle, asked["german"]))
    await handle.control("resume", {})
    assert (await held).texts == texts["german"]
    assert handle.server.supervisor.generation == 3
    await handle.stop(0)
    assert not zombies()


async def rest(stream):
    async with asyncio.timeout(PATIENCE):
        async for _ in stream:
            pass


async def test_a_start_that_is_given_up_leaves_nothing():
    engine = VLLMEngine("demo")
    starting = asyncio.create_task(engine.start())
    # The core is on its way.
    await asyncio.to_thread(wait_until, lambda: descendants(os.getpid(), "spawn_main"))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.to_thread(wait_until, lambda: not descendants(os.getpid(), "spawn_main"))
    with pytest.raises(EngineDeadError):
        await deltas_of(engine, chat_request(TEXT))


PARENT = """
import asyncio
from penstock.engines.vllm.engine import VLLMEngine
from penstock.testing import chat_request

async def main():
    engine = VLLMEngine("demo")
    await engine.start()
    async for _ in engine.chat(chat_request("hello")):
        pass
    guard = engine._running.front._guard
    print(guard._mark, guard._folder, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_nothing_survives_a_killed_parent(tmp_path):
    script = tmp_path / "job.py"  # it does not ask whether it is the main module
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        mark, folder = parent.stdout.readline().split()
        assert len(marked(mark)) == 2  # the core and its worker
        parent.kill()
    wait_until(lambda: not marked(mark) and not os.path.exists(folder))


def test_a_batch_job_goes_on_when_the_engine_is_killed(tmp_path):
    rows = [
        json.loads(line) for line in demo.tickets_path().read_text(encoding="utf-8").splitlines()
    ][:120]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "".join(json.dumps({"id": row["id"], "ticket": row["ticket"]}) + "\n" for row in rows)
    )
    command = [
        sys.executable,
        "-m",
        "penstock.cli",
        "run",
        source,
        "-o",
        output,
        "--engine",
        "vllm",
    ]
    command += [
        "--prompt",
        "{ticket}",
        "--max-tokens",
        "100",
        "--engine-kwargs",
        '{"max_num_seqs": 16}',
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        journal = output.with_name(f"{output.name}.penstock")
        wait_until(
            lambda: sum(path.read_bytes().count(b"\n") for path in journal.glob("rows-*")) >= 10
        )
        (core,) = descendants(job.pid, "VLLM::EngineCore")
        os.kill(core, signal.SIGKILL)
        _, told = job.communicate(timeout=300)
    assert job.returncode == 0, told
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in answers] == [row["id"] for row in rows]
    assert {row["status"] for row in answers} == {"ok"}
    right = sum(
        answer["response"] == demo.expected(row) for answer, row in zip(answers, rows, strict=True)
    )
    assert right >= 0.95 * len(rows)
