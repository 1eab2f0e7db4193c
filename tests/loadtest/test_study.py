import asyncio
import json

import pytest

from penstock.errors import ConfigError, UpstreamError
from penstock.loadtest.client import Sample, Server
from penstock.loadtest.study import (
    Load,
    Plan,
    Side,
    calibrated,
    closed_loop,
    compared,
    measured,
    open_loop,
    poisson,
    ramp,
    swept,
)
from penstock.loadtest.workload import Trace, Workload


class Words(Server):
    """A server to which each word is two tokens, and a template ten more."""

    def __init__(self, log=None, error=None):
        super().__init__("http://words")
        self.log = [] if log is None else log
        self.error = error

    def request(self, path, body):
        return json.dumps([path, body]).encode()

    async def ask(self, request, due=None):
        await asyncio.sleep(0)
        _, body = json.loads(request)
        words = len(body["messages"][0]["content"].split())
        self.log.append((self, body["messages"][0]["content"]))
        return Sample(
            due or 0.0,
            input_tokens=10 + 2 * words,
            output_tokens=1,
            pieces=1,
            error=self.error,
            why="no",
        )


def plan(tokens_per_word=None, **more):
    more = {"load": Load(clients=2), "requests": 4, "warmup": 2, **more}
    return Plan(Workload("gsm8k", tokens_per_word=tokens_per_word), **more)


async def test_the_tokens_of_a_word_are_measured():
    side = Side("a", Words(), "m")
    assert (await calibrated(side, plan())).tokens_per_word == 2
    assert (await calibrated(side, plan(tokens_per_word=1.5))).tokens_per_word == 1.5


async def test_a_server_that_answers_nothing_is_left_at_once():
    with pytest.raises(UpstreamError, match="does not answer a first request: HTTP 503: no"):
        await measured(Side("a", Words(error="HTTP 503"), "m"), plan())


async def test_two_sides_take_turns_with_prompts_of_the_same_lengths():
    log: list[tuple[Server, str]] = []
    sides = [Side(name, Words(log), "m") for name in "ab"]
    told: list[str] = []
    runs = await compared(sides, plan(tokens_per_word=1.0), 2, told.append)
    assert told == [f"round {n} of 2: {name}" for n in (1, 2) for name in "ab"]
    assert [[len(run.samples) for run in one] for one in runs] == [[4, 4], [4, 4]]
    texts = {side.name: [text for server, text in log if server is side.server] for side in sides}
    lengths = {name: [len(text.split()) for text in one] for name, one in texts.items()}
    assert lengths["a"] == lengths["b"]
    assert len({text for _, text in log}) == len(log)  # none is in a prefix cache


async def test_no_round_repeats_the_prompts_of_a_trace():
    log: list[tuple[Server, str]] = []
    sides = [Side(name, Words(log), "m") for name in "ab"]
    load = Load(trace=Trace([0.0, 0.0], [(20, 3), (30, 4)]))
    await compared(sides, plan(tokens_per_word=1.0, load=load), 2, lambda _: None)
    assert len({text for _, text in log}) == len(log)


async def test_a_sweep_goes_from_level_to_level():
    loads = [Load(clients=1), Load(clients=2)]
    runs = await swept(Side("a", Words(), "m"), plan(), loads, lambda _: None)
    assert [len(run.samples) for run in runs] == [4, 4]


@pytest.mark.parametrize(
    ("load", "requests"),
    [
        (Load(rate=1e6), 4),
        (Load(trace=Trace([0.0, 0.0], [(5, 1), (6, 1)])), 2),
    ],
)
async def test_open_loops(load, requests):
    run = await measured(Side("a", Words(), "m"), plan(load=load, tokens_per_word=1.0))
    assert len(run.samples) == requests


def test_a_load_is_of_one_kind():
    with pytest.raises(ConfigError, match="give one of"):
        Load(clients=1, rate=2)
    assert [str(Load(clients=1)), str(Load(rate=2)), str(Load(ramp=(1, 2, 3)))] == [
        "1 client",
        "2 requests/s",
        "1 to 2 requests/s in 3 s",
    ]


class Counting(Server):
    """Answers after two turns of the loop, and notes how many requests it has at once."""

    def __init__(self):
        super().__init__("http://counting")
        self.now = self.most = 0
        self.asked: list[tuple[bytes, float | None]] = []

    async def ask(self, request, due=None):
        self.asked.append((request, due))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.now -= 1
        return Sample(due or 0.0)


async def test_a_closed_loop_keeps_its_clients_busy_and_asks_each_request_once():
    server = Counting()
    run = await closed_loop(server, [b"%d" % number for number in range(10)], 3)
    assert server.most == 3
    assert sorted(request for request, _ in server.asked) == [b"%d" % n for n in range(10)]
    assert len(run.samples) == 10
    assert run.seconds > 0
    assert run.cpu_seconds >= 0


async def test_an_open_loop_waits_for_no_answer_and_says_when_each_was_due():
    server = Counting()
    run = await open_loop(server, [b"a", b"b", b"c"], [0.0, 0.0, 0.001])
    assert server.most >= 2
    dues = [due for _, due in server.asked]
    assert [round((due or 0) - (dues[0] or 0), 6) for due in dues] == [0, 0, 0.001]
    assert len(run.samples) == 3


def test_a_poisson_process_keeps_its_rate_and_its_seed():
    times = poisson(5.0, 2_000, seed=1)
    assert times == sorted(times) == poisson(5.0, 2_000, seed=1)
    assert times != poisson(5.0, 2_000, seed=2)
    assert times[-1] == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize(("first", "last"), [(0, 20), (20, 0), (10, 10)])
def test_a_ramp_has_its_mean_rate_and_its_direction(first, last):
    times = ramp(first, last, 200, seed=1)
    assert times == sorted(times)
    assert times[-1] < 200
    assert len(times) == pytest.approx((first + last) / 2 * 200, rel=0.1)
    early = sum(time < 100 for time in times) / len(times)
    assert early == pytest.approx({0: 0.25, 20: 0.75, 10: 0.5}[first], abs=0.05)
