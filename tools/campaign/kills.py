"""Jobs that are killed with SIGKILL, again and again, at random moments: the process itself or its
engine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
from promises import Promise

from jobs import FORMS, MODEL, command, ended, ids, leftovers, rows, settled, tickets

ROWS = 400
SLOW = '{"time_to_first_token_ms": 20, "time_per_token_ms": 1, "max_num_seqs": 8}'


def campaign(seed: int, deadline: float, folder: Path) -> list[Promise]:
    """Three kills of each job, then its end."""
    exact = Promise("A job that is killed resumes: no row is lost, doubled or out of order")
    same = Promise("On the simulated engine its output equals that of an uninterrupted run")
    clean = Promise("It leaves no temporary file behind")
    orphan = Promise("No engine process outlives its killed parent")
    revived = Promise("An engine that is killed under a job is started again; the job ends well")
    chance = random.Random(seed)
    source = tickets(folder / "tickets.jsonl", ROWS, seed)
    expected = {}
    for form in FORMS:
        path = folder / f"whole-{form}" / f"out.{form}"
        path.parent.mkdir()
        done = ended(command(source, path, *MODEL, "--engine-kwargs", SLOW))
        assert done.returncode == 0, done.stderr
        expected[form] = settled(path)
    number = 0
    while time.monotonic() < deadline:
        form = FORMS[number % len(FORMS)]
        home = folder / f"job-{number}"
        home.mkdir()
        output = home / f"out.{form}"
        if number % 4 == 3:
            _kill_engine(source, output, chance, exact, revived, orphan)
        else:
            argv = command(source, output, *MODEL, "--engine-kwargs", SLOW)
            for _ in range(3):
                _killed(argv, chance.uniform(0.3, 2.5))
            done = ended(argv)
            name = f"job {number} ({form})"
            if done.returncode != 0:
                exact.broke(f"{name}: exit {done.returncode}, {done.stderr[-200:]}")
            else:
                _judge(exact, ids(output) == list(range(ROWS)), name)
                _judge(same, settled(output) == expected[form], name)
                left = leftovers(output, source)
                _judge(clean, not left, f"{name}: {left}")
        number += 1
    return [exact, same, clean, revived, orphan]


def _judge(promise: Promise, kept: bool, what: str) -> None:
    if kept:
        promise.held()
    else:
        promise.broke(what)


def _killed(argv: list[str], after_s: float) -> None:
    """Start a command, and kill it if it has not ended by then."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill_engine(
    source: Path,
    output: Path,
    chance: random.Random,
    exact: Promise,
    revived: Promise,
    orphan: Promise,
) -> None:
    """Kill the embedded engine under a job twice, then the job itself, then let it end."""
    argv = command(source, output, "--model", "demo", "--max-tokens", "60")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(2):
        time.sleep(chance.uniform(0.8, 2.0))
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(child, signal.SIGKILL)
    last = _children(process.pid)
    process.kill()
    process.communicate()
    for child in last:
        _judge(orphan, _gone(child, 5.0), f"engine process {child} lives on")
    done = ended(argv)
    name = f"{output.parent.name} (engine)"
    _judge(revived, done.returncode == 0, f"{name}: exit {done.returncode}, {done.stderr[-200:]}")
    if done.returncode == 0:
        good = sum(row["status"] == "ok" for row in rows(output))
        _judge(
            exact, ids(output) == list(range(ROWS)) and good == ROWS, f"{name}: {good} of {ROWS} ok"
        )


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _gone(pid: int, within_s: float) -> bool:
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
