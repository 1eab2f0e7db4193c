import shutil

import pytest

from penstock.batch.state.lock import Lock
from penstock.errors import JobError, OutputError


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
