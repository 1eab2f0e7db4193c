import asyncio
import json
import os
from hashlib import sha256

import pytest

from penstock.demo import MODEL_NAME
from penstock.engines.openvino.constraints import pool as constraints
from penstock.engines.openvino.constraints.pool import Constraints
from penstock.engines.openvino.model.source import find_model
from penstock.engines.process import EngineProcess
from penstock.errors import OverloadedError, RequestError
from penstock.types import StructuredOutput

GOOD = StructuredOutput("regex", "[ab]{3}")
SLOW = StructuredOutput(
    "json_schema", json.dumps({"enum": [sha256(str(n).encode()).hexdigest() for n in range(1_500)]})
)


@pytest.fixture
async def tried():
    """Constraints on the demo model's tokenizer."""
    pool = Constraints(str(find_model(MODEL_NAME, None, None).path))
    yield pool
    await pool.stop()


def pids(pool):
    return [process._process.pid for process in pool._processes]


def exists(pid):
    return os.path.exists(f"/proc/{pid}")


async def test_a_constraint_becomes_a_grammar_once(tried):
    first, second = await asyncio.gather(tried.grammar(GOOD), tried.grammar(GOOD))
    assert first == second
    assert first.kind == "grammar"
    assert "root ::=" in first.spec
    (pid,) = pids(tried)
    os.kill(pid, 9)  # what is known needs no process
    assert await tried.grammar(GOOD) == first


async def test_each_kind_has_a_grammar(tried):
    made = [
        await tried.grammar(StructuredOutput("json_object")),
        await tried.grammar(StructuredOutput("json_schema", '{"type": "null"}')),
    ]
    assert all(made)


async def test_a_refusal_names_the_part_of_the_request_that_is_at_fault(tried):
    for param in ("response_format", "tools"):
        with pytest.raises(RequestError) as refused:
            await tried.grammar(StructuredOutput("regex", "(?=a)", param=param))
        assert refused.value.param == param


async def test_a_refusal_is_remembered(tried):
    for _ in range(2):
        with pytest.raises(RequestError, match="look-around"):
            await tried.grammar(StructuredOutput("regex", "(?=a)"))
    assert len(tried._known) == 1


@pytest.mark.slow
async def test_a_process_that_is_killed_is_replaced(tried):
    await tried.grammar(GOOD)
    (pid,) = pids(tried)
    os.kill(pid, 9)
    assert (await tried.grammar(StructuredOutput("regex", "c"))).kind == "grammar"


@pytest.mark.slow
async def test_what_takes_too_much_time_is_refused(tried):
    tried._load = tried._load.__class__(tried._load.path, 0.01, constraints.MEMORY_BYTES)
    with pytest.raises(RequestError, match="processor time"):
        await tried.grammar(SLOW)
    with pytest.raises(RequestError, match="processor time"):  # remembered
        await tried.grammar(SLOW)


@pytest.mark.slow
async def test_what_takes_too_much_memory_is_refused(tried):
    tried._load = tried._load.__class__(tried._load.path, 60, 1 << 20)
    with pytest.raises(RequestError, match="memory"):
        await tried.grammar(SLOW)


@pytest.mark.slow
async def test_what_nobody_waits_for_is_given_up(tried, monkeypatch):
    monkeypatch.setattr(constraints, "ABANDONED_SECONDS", 0.0)
    await tried.grammar(GOOD)
    (pid,) = pids(tried)
    asking = asyncio.create_task(tried.grammar(SLOW))
    while not any(process.trial for process in tried._processes):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    asking.cancel()
    assert (await tried.grammar(StructuredOutput("regex", "d"))).kind == "grammar"
    while pid in pids(tried):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    assert not tried._trials


async def test_the_queue_is_bounded(tried, monkeypatch):
    monkeypatch.setattr(constraints, "QUEUE", 2)
    first = [
        asyncio.create_task(tried.grammar(StructuredOutput("regex", f"{n}"))) for n in range(2)
    ]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="new constraints wait"):
        await tried.grammar(StructuredOutput("regex", "9"))
    assert len(await asyncio.gather(*first)) == 2


async def test_without_a_process_everyone_is_told(tmp_path):
    pool = Constraints(str(tmp_path))
    with pytest.raises(OverloadedError, match="cannot be compiled for now"):
        await pool.grammar(GOOD)
    await pool.stop()


async def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(constraints, "_REMEMBERED", 3)
    pool = Constraints("none")
    for n in range(10):
        pool._remember(bytes([n]), "grammar")
    assert list(pool._known) == [bytes([n]) for n in (7, 8, 9)]


async def test_a_process_that_others_leave_no_time_is_replaced_by_one_that_takes_a_share(
    tried, monkeypatch
):
    monkeypatch.setattr(constraints, "STARVED_SECONDS", 0.05)
    seen = []
    # As if it could not be reaped yet.
    monkeypatch.setattr(EngineProcess, "_cause_of_death", lambda _: "it ended")

    def as_if_it_never_got_any(pid):
        seen.append(pid)
        return 1.0

    monkeypatch.setattr(constraints, "processor_seconds", as_if_it_never_got_any)
    assert (await tried.grammar(GOOD)).kind == "grammar"
    assert [process._yields for process in tried._processes] == [False]
    await tried.stop()
    assert not any(map(exists, seen))  # nor is the first one left unreaped


async def test_a_busy_machine_is_no_fault_of_the_constraint(tried, monkeypatch):
    monkeypatch.setattr(constraints, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(OverloadedError, match="too busy"):
        await tried.grammar(GOOD)
    assert not tried._known
    monkeypatch.undo()
    assert (await tried.grammar(GOOD)).kind == "grammar"
