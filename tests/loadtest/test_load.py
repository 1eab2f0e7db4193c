import asyncio

from penstock.loadtest.client import Sample, Server
from penstock.loadtest.load import closed_loop, open_loop


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
