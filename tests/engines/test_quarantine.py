"""Suspects, groups and proof, on an engine that is nothing but its deaths."""

import asyncio
import random

import pytest

from penstock.engines import quarantine as module
from penstock.engines.quarantine import Quarantine, digest_of
from penstock.errors import EngineDeadError, QuarantinedError, RequestError
from penstock.types import ChatRequest, EmbeddingRequest


class Engine:
    """Answers after so many turns of the event loop, and dies of the names in `fatal` after as
    many, or `killing`; all in it die with it. `killed`: by a signal that somebody may have sent.
    """

    def __init__(self, fatal=(), turns=1, killing=None, killed=False):
        self.killed = killed
        self.fatal, self.turns, self.killing = set(fatal), turns, killing or turns
        self.inside: dict = {}
        self.deaths = 0
        self.died = asyncio.Event()
        self.answered: list[str] = []
        self.together: list[set] = []

    async def ask(self, name):
        ended = asyncio.get_running_loop().create_future()
        self.inside[ended] = name
        try:
            for _ in range(self.killing if name in self.fatal else self.turns):
                await asyncio.sleep(0)
                if ended.done():
                    break
            if name in self.fatal and not ended.done():
                self.kill()
            if ended.done():
                raise EngineDeadError("died", killed=self.killed)
            self.answered.append(name)
        finally:
            self.inside.pop(ended, None)

    def kill(self):
        self.deaths += 1
        self.died.set()
        self.together.append(set(self.inside.values()))
        for ended in self.inside:
            ended.set_result(None)


async def ask(quarantine, engine, name, stop=False):
    """One request, asked until it is answered or refused; with `stop`, only until the engine dies
    of it.
    """
    with quarantine.visit(lambda: name.encode()) as visit:
        while True:
            try:
                async with visit:
                    await engine.ask(name)
                return "ok"
            except QuarantinedError:
                return "refused"
            except EngineDeadError:
                if quarantine.wants_probe:
                    quarantine.answered()
                quarantine.reopen()
                if stop:
                    return "given up"


async def ask_all(quarantine, engine, names, concurrency):
    places = asyncio.Semaphore(concurrency)

    async def one(name):
        async with places:
            return await ask(quarantine, engine, name)

    return await asyncio.gather(*(one(name) for name in names))


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("concurrency", [1, 2, 8, 64, 256])
@pytest.mark.parametrize("order", ["first", "last", "spread", "shuffled"])
@pytest.mark.parametrize("killed", [False, True])
async def test_ten_killers_among_three_hundred(concurrency, order, killed):
    names = [str(number) for number in range(300)]
    if order == "shuffled":
        random.Random(concurrency).shuffle(names)
    fatal = {"first": names[:10], "last": names[-10:]}.get(order) or names[7::31][:10]
    engine, quarantine = Engine(fatal, turns=3, killed=killed), Quarantine()
    found = await ask_all(quarantine, engine, names, concurrency)
    assert [name for name, result in zip(names, found, strict=True) if result == "refused"] == fatal
    assert sorted(engine.answered) == sorted(set(names) - set(fatal))
    assert engine.deaths <= 10 * (concurrency.bit_length() + 3 + killed)
    assert quarantine.suspects == 0
    assert len(quarantine._records) == 10


async def test_after_one_kill_all_are_asked_again_together():
    engine, quarantine = Engine(turns=10, killed=True), Quarantine()
    names = [*map(str, range(40))]
    asked = asyncio.create_task(ask_all(quarantine, engine, names, 40))
    await until(lambda: len(engine.inside) == 40)
    engine.kill()
    await until(
        lambda: len(engine.inside) == 40 and not any(ended.done() for ended in engine.inside)
    )
    engine.kill()  # once more, and they are taken apart
    assert await asked == ["ok"] * 40
    assert [len(together) for together in engine.together] == [40, 40]
    assert quarantine.suspects == 0


async def test_equal_requests_share_their_proof():
    engine, quarantine = Engine({"bad"}), Quarantine()
    found = await asyncio.gather(
        *(ask(quarantine, engine, name) for name in ("bad", "good", "bad", "bad"))
    )
    assert found == ["refused", "ok", "refused", "refused"]
    deaths = engine.deaths
    assert await ask(quarantine, engine, "bad") == "refused"
    assert engine.deaths == deaths


async def test_a_killer_that_comes_last_costs_three_deaths():
    engine, quarantine = Engine({"bad"}, turns=4, killing=1), Quarantine()
    names = [*map(str, range(60)), "bad"]
    assert await ask_all(quarantine, engine, names, 64) == ["ok"] * 60 + ["refused"]
    assert engine.deaths == 3
    assert engine.together[1:] == [{"bad"}, {"bad"}]


@pytest.mark.parametrize("killed", [False, True])
async def test_deaths_that_nobody_causes_charge_nobody(killed):
    engine, quarantine = Engine(turns=5, killed=killed), Quarantine()

    async def kill():
        while True:
            engine.kill()
            for _ in range(97):
                await asyncio.sleep(0)

    killing = asyncio.create_task(kill())
    found = await ask_all(quarantine, engine, map(str, range(1000)), 16)
    killing.cancel()
    assert found == ["ok"] * 1000
    assert engine.deaths >= 5
    assert not quarantine.troubled


async def test_without_an_answer_in_between_two_deaths_are_no_proof():
    quarantine = Quarantine()

    async def die():
        with pytest.raises(EngineDeadError):
            async with visit:
                raise EngineDeadError("died")
        quarantine.reopen()

    with quarantine.visit(lambda: b"x") as visit:
        for _ in range(5):
            await die()
        assert quarantine.wants_probe
        quarantine.absolve()
        for _ in range(2):
            quarantine.answered()
            await die()
        with pytest.raises(QuarantinedError):
            async with visit:
                pass


async def test_newcomers_wait_until_the_suspects_are_through():
    engine, quarantine = Engine({"bad"}, turns=3), Quarantine()
    first = [asyncio.create_task(ask(quarantine, engine, name)) for name in ("a", "b", "bad")]
    await engine.died.wait()
    late = asyncio.create_task(ask(quarantine, engine, "late"))
    assert list(await asyncio.gather(*first, late)) == ["ok", "ok", "refused", "ok"]
    assert all("late" not in inside for inside in engine.together)


async def test_nobody_enters_until_the_engine_is_said_to_run_again():
    engine, quarantine = Engine(), Quarantine()
    with quarantine.visit(lambda: b"x") as visit, pytest.raises(EngineDeadError):
        async with visit:
            raise EngineDeadError("died")
    asking = asyncio.create_task(ask(quarantine, engine, "a"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not engine.answered
    quarantine.reopen()
    assert await asking == "ok"


async def test_one_that_died_before_it_was_asked_is_no_suspect():
    quarantine = Quarantine()
    with quarantine.visit(lambda: b"x") as visit:
        with pytest.raises(EngineDeadError):
            async with visit:
                raise EngineDeadError("not running", suspects=False)
        quarantine.reopen()
        assert not quarantine.troubled


@pytest.mark.parametrize("error", [RequestError("no"), asyncio.CancelledError()])
async def test_a_suspect_that_ends_in_another_way_holds_nobody_up(error):
    quarantine = Quarantine()
    with quarantine.visit(lambda: b"x") as visit:
        with pytest.raises(EngineDeadError):
            async with visit:
                raise EngineDeadError("died")
        quarantine.reopen()
        assert quarantine.suspects == 1
        with pytest.raises(type(error)):
            async with visit:
                raise error
        assert quarantine.suspects == 0


async def test_a_suspect_that_is_not_asked_again_holds_nobody_up():
    engine, quarantine = Engine({"bad"}), Quarantine()
    asking = [ask(quarantine, engine, name, stop=name == "bad") for name in ("a", "bad", "b")]
    assert await asyncio.gather(*asking) == ["ok", "given up", "ok"]
    assert await ask(quarantine, engine, "c") == "ok"


async def test_one_that_was_there_at_two_deaths_is_alone_the_next_time():
    """As a stream that its client asks for again and again: what has begun is not asked again
    here.
    """
    engine, quarantine = Engine({"bad"}, turns=2), Quarantine()
    for _ in range(2):
        await asyncio.gather(
            *(ask(quarantine, engine, name, stop=name == "bad") for name in ("a", "bad")),
        )
    deaths = engine.deaths
    assert await ask_all(quarantine, engine, ["b", "bad", "c"], 3) == ["ok", "refused", "ok"]
    assert all(inside == {"bad"} for inside in engine.together[deaths:])


async def test_requests_that_survive_a_death_hold_nobody_up(monkeypatch):
    """As those on other replicas than the one that died."""
    monkeypatch.setattr(module, "HARMLESS_S", 0.0)
    quarantine = Quarantine()
    with quarantine.visit(lambda: b"long") as survivor, quarantine.visit(lambda: b"x") as visit:
        async with survivor:
            with pytest.raises(EngineDeadError):
                async with visit:
                    raise EngineDeadError("died")
            quarantine.reopen()
            async with asyncio.timeout(5):
                async with visit:
                    pass
    assert not quarantine.troubled


async def test_a_suspect_that_outlives_its_time_lets_others_in(monkeypatch):
    monkeypatch.setattr(module, "HARMLESS_S", 0.0)
    quarantine = Quarantine()
    go_on = asyncio.Event()
    with quarantine.visit(lambda: b"x") as visit:
        with pytest.raises(EngineDeadError):
            async with visit:
                raise EngineDeadError("died")
        quarantine.reopen()
        async with visit:
            assert await asyncio.wait_for(ask(quarantine, Engine(), "other"), 5) == "ok"
            go_on.set()
    assert go_on.is_set()


async def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 8)
    engine, quarantine = Engine(map(str, range(20))), Quarantine()
    assert await ask_all(quarantine, engine, map(str, range(20)), 4) == ["refused"] * 20
    assert len(quarantine._records) == 8


def test_a_digest_is_that_of_what_is_asked():
    hello = ChatRequest([{"role": "user", "content": "Hi"}])
    same = ChatRequest(
        [{"role": "user", "content": "Hi"}], request_id="1", priority=3, stream=False
    )
    assert digest_of(hello) == digest_of(same)
    assert digest_of(hello) != digest_of(ChatRequest([{"role": "user", "content": "Ho"}]))
    assert digest_of(EmbeddingRequest(["a"])) != digest_of(("EmbeddingRequest", "a"))
    assert digest_of(EmbeddingRequest(["a"])) == digest_of(EmbeddingRequest(["a"], packed=True))
    assert digest_of({"text": "\ud800", "n": 2**70}) == digest_of({"text": "\ud800", "n": 2**70})
