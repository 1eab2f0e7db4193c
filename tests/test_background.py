import asyncio
import concurrent.futures
import subprocess
import sys
import threading

import pytest

import penstock
from penstock import background
from penstock.batch import Processor, ProcessorConfig
from penstock.errors import ConfigError


async def _name():
    return threading.current_thread().name


async def _fail():
    raise ValueError("no")


def test_work_is_done_on_one_loop():
    assert background.run(_name()) == background.run(_name()) == "penstock-background"
    with pytest.raises(ValueError, match="no"):
        background.run(_fail())


def test_what_ends_something_may_be_called_on_the_loop_itself():
    done = threading.Event()

    async def end():
        done.set()

    async def work():
        background.finish(end())

    background.run(work())
    assert done.wait(30)
    done.clear()
    background.finish(end())
    assert done.is_set()


def test_the_loop_does_not_wait_for_itself():
    async def work():
        background.run(_name())

    with pytest.raises(ConfigError, match="cannot wait for another one"):
        background.run(work())

    async def job():
        penstock.run([{"n": 1}], processor=Processor(ProcessorConfig(), []), progress=False)

    with pytest.raises(ConfigError, match="cannot wait for another one"):
        background.run(job())


HALF_READ = """
from penstock.batch import Processor, ProcessorConfig, StatefulStage

class Nothing:
    async def process(self, row):
        return {}

rows = iter(Processor(ProcessorConfig(), [StatefulStage(Nothing)])({"n": n} for n in range(10**9)))
print(next(rows))
"""


def test_a_program_ends_in_the_middle_of_its_rows():
    done = subprocess.run(
        [sys.executable, "-c", HALF_READ], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{'n': 0}\n", "")


OUTLIVING = """
import threading
import penstock
from penstock.batch import Processor, ProcessorConfig, StatefulStage

class Nothing:
    async def process(self, row):
        return {}

def rows():
    threading.main_thread().join()
    yield {"n": 1}

def work():
    processor = Processor(ProcessorConfig(), [StatefulStage(Nothing)])
    for options in ({"processor": processor}, {"prompt": "{n}", "engine": "simulated"}):
        try:
            penstock.run(rows(), f"FOLDER/{len(options)}.jsonl", progress=False, **options)
        except penstock.PenstockError as error:
            print(error)

threading.Thread(target=work).start()
"""


def test_a_job_that_outlives_the_main_thread_says_what_to_do(tmp_path):
    program = OUTLIVING.replace("FOLDER", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    told = "the program's main thread has ended, and Python starts no others then"
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(";")[0] for line in done.stdout.splitlines()] == [told, told]


FORKED = """
import os
from penstock.batch import Processor, ProcessorConfig, StatefulStage

class Nothing:
    async def process(self, row):
        return {}

processor = Processor(ProcessorConfig(), [StatefulStage(Nothing)])
processor([{"n": 1}]).take_all()
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(len(processor([{"n": 1}, {"n": 2}]).take_all()))
"""


def test_a_forked_child_has_a_loop_of_its_own():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=60, check=False).returncode == 2


def test_an_interrupt_cancels_the_work(monkeypatch):
    cancelled = threading.Event()
    started = threading.Event()
    calls: list[object] = []

    async def work():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def interrupted(self, timeout=None):
        if not calls:
            calls.append(self)
            started.wait(30)
            raise KeyboardInterrupt
        return original(self, timeout)

    original = concurrent.futures.Future.result
    monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.run(work())
    assert cancelled.wait(30)
