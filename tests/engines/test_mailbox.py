import asyncio

import pytest

from penstock.engines.mailbox import Mailbox
from penstock.errors import EngineDeadError
from penstock.types import Delta

A, B = Delta(text="a"), Delta(text="b")


async def test_all_that_is_there_is_taken_at_once():
    mailbox = Mailbox()
    mailbox.put(A)
    mailbox.put(B)
    assert await mailbox.take() == [A, B]


async def test_taking_waits_for_something():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    mailbox.put(A)
    mailbox.put(B)
    assert await taking == [A, B]


async def test_an_error_comes_after_what_came_before_it():
    mailbox = Mailbox()
    mailbox.put(A)
    mailbox.fail(EngineDeadError("gone"))
    assert mailbox.failed
    assert await mailbox.take() == [A]
    with pytest.raises(EngineDeadError, match="gone"):
        await mailbox.take()


async def test_an_error_wakes_who_waits():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.fail(EngineDeadError("gone"))
    with pytest.raises(EngineDeadError):
        await taking


async def test_a_taker_who_was_cancelled_loses_nothing():
    mailbox = Mailbox()
    taking = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    taking.cancel()
    mailbox.put(A)
    await asyncio.gather(taking, return_exceptions=True)
    assert await mailbox.take() == [A]
