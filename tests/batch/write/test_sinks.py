"""Where finished rows go while a job runs."""

import threading

from penstock.batch.rows.row import Outcome, Row
from penstock.batch.write import sinks
from penstock.batch.write.journal import Journal
from penstock.batch.write.parts import PartWriter


class Writer(PartWriter):
    """Writes nothing before it may."""

    go_on = threading.Event()

    def add(self, row, outcome):
        pass

    def complete(self):
        assert self.go_on.wait(20)
        self._temporary.write_text("")


async def test_a_slow_disk_holds_the_rows_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "PART_ROWS", 2)
    journal = Journal(tmp_path, 0)
    journal.load()
    sink = sinks.DurableSink(journal, Writer, "{}.jsonl".format, keep_order=True)
    room = []
    sink.on_room = lambda: room.append(sink.full)
    taken = 0
    while not sink.full and taken < 100:
        sink.put(Row(taken, {}), Outcome("a"))
        taken += 1
    assert taken == 2 + 4 * 2
    assert room == []
    Writer.go_on.set()
    await sink.finish()
    assert (room, sink.full) == ([False], False)
    await sink.close()
    again = Journal(tmp_path, 0)
    again.load()
    assert len(again.done) == taken
