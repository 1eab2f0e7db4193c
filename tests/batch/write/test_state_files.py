import shutil

import pytest

from penstock.batch.write.state_files import Lock, Records, checksum_of
from penstock.errors import JobError, OutputError


def written(path, records, key=7):
    file = Records(path, key)
    path.write_bytes(b"".join(file.seal(record) for record in records))
    return path.read_bytes().splitlines(keepends=True)


def read(path, key=7):
    file = Records(path, key)
    return file.read(), file.lost


FIVE = [b'{"a":%d}' % number for number in range(5)]


def test_records_come_back_and_go_on(tmp_path):
    path = tmp_path / "rows-0-0.jsonl"
    written(path, FIVE[:3])
    file = Records(path, 7)
    assert (file.read(), file.lost) == (FIVE[:3], 0)
    with open(path, "ab") as more:
        more.write(file.seal(FIVE[3]))
    assert read(path) == (FIVE[:4], 0)


def test_damage_costs_the_record_it_is_in(tmp_path):
    path = tmp_path / "rows-0-0.jsonl"
    whole = b"".join(written(path, FIVE))
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        found, lost = read(path)
        assert [record for record in FIVE if record in found] == found
        assert len(found) >= 3
        torn = at == len(whole) - 1  # nothing tells that from an end that a crash cut off
        assert (lost > 0) == (len(found) < 5 and not torn)


def test_lines_that_are_repeated_moved_or_gone(tmp_path):
    path = tmp_path / "rows-0-0.jsonl"
    lines = written(path, FIVE)
    for changed, found, lost in (
        ([*lines, lines[2]], FIVE, 0),
        (lines[::-1], FIVE, 0),
        (lines[:2] + lines[3:], FIVE[:2] + FIVE[3:], 1),
        (lines[:3], FIVE[:3], 0),
        ([*lines[:4], lines[4][:-5]], FIVE[:4], 0),
        ([*lines[:4], b"\0" * 40 + b"\n"], FIVE[:4], 1),
        ([], [], 0),
    ):
        path.write_bytes(b"".join(changed))
        assert read(path) == (found, lost)


def test_lines_of_other_files_and_jobs_count_for_nothing(tmp_path):
    path = tmp_path / "rows-0-0.jsonl"
    written(path, FIVE)
    path.rename(tmp_path / "rows-0-1.jsonl")
    assert read(tmp_path / "rows-0-1.jsonl") == ([], 5)
    written(path, FIVE, key=8)
    assert read(path) == ([], 5)


def test_a_torn_end_is_cut_off(tmp_path):
    path = tmp_path / "rows-0-0.jsonl"
    whole = b"".join(written(path, FIVE))
    path.write_bytes(whole + b'["0123')
    file = Records(path, 7)
    file.read()
    file.cut()
    assert path.read_bytes() == whole


def test_what_cannot_be_read_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="rows-0-0"):
        Records(tmp_path / "rows-0-0.jsonl", 7).read()


def test_checksums_of_files_and_directories(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b.parquet").write_bytes(b"y")
    one = checksum_of(tmp_path / "a.parquet")
    both = checksum_of(tmp_path)
    (tmp_path / "b.parquet").rename(tmp_path / "c.parquet")
    assert len({one, both, checksum_of(tmp_path), checksum_of(tmp_path / "c.parquet")}) == 4


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_one_at_a_time(folder):
    lock = Lock(folder)
    lock.check()
    with pytest.raises(JobError, match="another process"):
        Lock(folder)
    lock.release()
    lock.release()
    Lock(folder).release()


def test_a_lock_file_that_is_gone_is_noticed_and_lets_nobody_in(folder):
    lock = Lock(folder)
    (folder / "lock").unlink()
    with pytest.raises(OutputError, match="removed or replaced"):
        lock.check()
    with pytest.raises(JobError, match="another process"):
        Lock(folder)
    with pytest.raises(OutputError, match="removed or replaced"):
        lock.check()  # though there is one again
    lock.release()


def test_a_folder_that_is_gone_or_another_is_noticed(folder):
    lock = Lock(folder)
    shutil.rmtree(folder)
    with pytest.raises(OutputError, match="removed or replaced"):
        lock.check()
    folder.mkdir()
    other = Lock(folder)
    with pytest.raises(OutputError, match="removed or replaced"):
        lock.check()
    other.check()
    lock.release()
    other.release()
