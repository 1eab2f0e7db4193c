import errno
import os

import pytest

from penstock.batch.rows.row import Outcome, RowError, failed
from penstock.batch.write.journal import Journal, digest_key
from penstock.batch.write.parts import Part, size
from penstock.batch.write.state_files import replace_file
from penstock.errors import EngineError, OutputError
from penstock.types import Usage

DIGEST = b"0123456789abcdef"


def outcome(number):
    return Outcome(f"answer {number}", None, "stop", Usage(1, 2, 3), 1, 0.5, {"a": number})


def opened(folder, generation=0, **options):
    journal = Journal(folder, generation, **options)
    journal.load()
    return journal


def test_rows_come_back_as_they_were(tmp_path):
    journal = opened(tmp_path)
    assert journal.add(3, DIGEST, outcome(3)) is True
    assert journal.add(1, b"", failed(EngineError("no"), "engine", 2)) is False
    journal.flush()
    again = opened(tmp_path)
    assert {index: record.outcome for index, record in again.pending.items()} == {
        3: outcome(3),
        1: Outcome(error=RowError("engine_error", "engine", False, "no"), attempts=2),
    }
    assert [record.key for record in again.pending.values()] == [digest_key(DIGEST), 0]
    journal.close()


def test_kept_rows_are_not_written_over(tmp_path):
    for number in range(3):  # each run is killed when it has shelved its rows
        journal = opened(tmp_path, keeps=True)
        journal.add(number, DIGEST, outcome(number), 1)
        journal.close()
        journal.shelve()
    assert [kept.name for kept, _ in journal.kept_files()] == [
        f"kept-0-{number}.jsonl" for number in range(3)
    ]


@pytest.mark.parametrize("torn", [1, 10, 40])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    journal = opened(tmp_path)
    for number in range(3):
        journal.add(number, DIGEST, outcome(number))
    journal.close()
    (file,) = tmp_path.glob("rows-*")
    os.truncate(file, file.stat().st_size - torn)
    again = opened(tmp_path)
    assert sorted(again.pending) == [0, 1]
    again.add(7, DIGEST, outcome(7))
    again.close()
    assert sorted(opened(tmp_path).pending) == [0, 1, 7]


def test_a_line_of_garbage_costs_only_its_row(tmp_path):
    journal = opened(tmp_path)
    for number in range(3):
        journal.add(number, DIGEST, outcome(number))
    journal.close()
    (file,) = tmp_path.glob("rows-*")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = b"\x00" * (len(lines[1]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    assert sorted(opened(tmp_path).pending) == [0, 2]


def test_a_committed_part_takes_its_rows_out_of_the_journal(tmp_path):
    journal = opened(tmp_path)
    for number in range(6):
        journal.add(number, DIGEST, outcome(number))
    commit = journal.rotate([(4, DIGEST, outcome(4), 0), (5, DIGEST, outcome(5), 0)])
    before = opened(tmp_path)
    assert (sorted(before.pending), len(before.done)) == ([0, 1, 2, 3, 4, 5], 0)
    commit(Part("part-0-0.jsonl", [(0, 4)], errors={"x": 1}, check=5))
    journal.close()
    after = opened(tmp_path)
    assert sorted(after.pending) == [4, 5]
    assert (after.done.runs, after.errors, after.check, after.parts) == ([(0, 4)], {"x": 1}, 5, 1)
    assert len(list(tmp_path.glob("rows-*"))) == 1


def test_rows_of_an_earlier_run_survive_a_rotation_before_they_are_read_again(tmp_path):
    journal = opened(tmp_path)
    for number in range(4):
        journal.add(number, DIGEST, outcome(number))
    journal.close()
    again = opened(tmp_path)
    del again.pending[0], again.pending[1]
    again.rotate([])(Part("part-0-0.jsonl", [(0, 2)]))
    again.close()
    assert sorted(opened(tmp_path).pending) == [2, 3]


def test_the_next_generation_counts_only_when_it_is_opened(tmp_path):
    journal = opened(tmp_path)
    journal.add(0, DIGEST, outcome(0))
    journal.rotate([])(Part("part-0-0.jsonl", [(0, 3)], failed=[(1, 2)], errors={"x": 1}))
    journal.add(3, DIGEST, outcome(3))
    journal.add(4, b"", failed(EngineError("no"), "engine"))
    journal.close()
    journal = opened(tmp_path)
    journal.next_generation([Part("part-0-0.jsonl", [(0, 3)], dropped=[(1, 2)])])
    old = opened(tmp_path)
    assert (size(old.done.runs), sorted(old.pending)) == (3, [3, 4])
    journal.next_generation([Part("part-0-0.jsonl", [(0, 3)], dropped=[(1, 2)])])
    new = opened(tmp_path, 1)
    assert (new.done.runs, sorted(new.pending), new.errors, new.check) == (
        [(0, 1), (2, 3)],
        [3],
        {},
        None,
    )
    assert not list(tmp_path.glob("*-0.jsonl")) or all(
        "-1-" in p.name or "s-1" in p.name for p in tmp_path.iterdir()
    )


def test_short_writes_are_completed(tmp_path):
    journal = opened(tmp_path, write=lambda descriptor, data: os.write(descriptor, data[:5]))
    journal.add(0, DIGEST, outcome(0))
    journal.close()
    assert opened(tmp_path).pending[0].outcome == outcome(0)


def test_a_full_disk_is_an_output_error(tmp_path):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = opened(tmp_path, write=full)
    journal.add(0, DIGEST, outcome(0))
    with pytest.raises(OutputError, match="No space left on device"):
        journal.flush()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputError, match="No space left"):
        replace_file(tmp_path / "file", b"new", full)
    assert (tmp_path / "file").read_bytes() == b"old"
    journal.close()
