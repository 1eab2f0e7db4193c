import errno
import fcntl
import os
import stat

import pytest

from penstock import private_files


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_for_this_user_alone_whatever_the_umask(tmp_path, umask):
    folder = tmp_path / "above" / "state"
    assert private_files.make_folder(folder) is True
    assert private_files.make_folder(folder) is False
    with open(folder / "file", "w", opener=private_files.opener) as file:
        file.write("prompt")
    assert (mode(folder.parent), mode(folder), mode(folder / "file")) == (0o700, 0o700, 0o600)


def test_a_file_that_was_open_to_others_is_closed_when_it_is_written_anew(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o644)
    with open(path, "rb", opener=private_files.opener):
        assert mode(path) == 0o644
    with open(path, "wb", opener=private_files.opener):
        assert mode(path) == 0o600


def test_a_folder_that_was_there_is_closed_to_others(tmp_path):
    tmp_path.chmod(0o755)
    private_files.close_to_others(tmp_path)
    assert mode(tmp_path) == 0o700


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_files.close_to_others(tmp_path)


def test_a_result_gets_the_mode_that_the_umask_gives(tmp_path, umask):
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        private_files.make_folder(path.parent)
        with open(path, "w", opener=private_files.opener):
            pass
    private_files.open_to_usual(tmp_path / "file", tmp_path)
    private_files.open_to_usual(tmp_path / "folder", tmp_path)
    assert mode(tmp_path / "file") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask & ~(0o111 & umask >> 2)
    tmp_path.joinpath("folder").chmod(0o700)
    assert mode(tmp_path / "folder" / "file") == 0o666 & ~umask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_lock_is_held_once_and_freed_with_its_file(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert private_files.lock(first.fileno()) is True
        assert private_files.lock(second.fileno()) is False
        first.close()
        assert private_files.lock(second.fileno(), wait=True) is True


def test_a_file_system_without_locks_is_named_with_what_to_do(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        open(tmp_path / "lock", "w") as file,
        pytest.raises(OSError, match=r"no locks \(No locks available\).*choose a folder") as raised,
    ):
        private_files.lock(file.fileno())
    assert raised.value.errno == errno.ENOLCK
