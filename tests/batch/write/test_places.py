"""Places that can be written, and those that cannot."""

import os
from types import SimpleNamespace

import pytest

from penstock.batch.write.places import check_place
from penstock.errors import ConfigError


def test_where_a_file_can_be_written(tmp_path):
    (tmp_path / "there").touch()
    for name in ("new", "there"):
        check_place(str(tmp_path / name), "output")
        check_place(str(tmp_path / name), "output", replaced=True)
    check_place(f"{tmp_path}/", "output", directory=True)
    check_place("/dev/null", "output")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "it is a directory"),
        ("absent/file", "there is no directory .*absent"),
        ("there/file", "there is no directory .*there"),
    ],
)
def test_where_none_can_be_written(tmp_path, name, words):
    (tmp_path / "there").touch()
    with pytest.raises(ConfigError, match=f"report: .* cannot be written: {words}"):
        check_place(f"{tmp_path}/{name}", "report")


@pytest.mark.parametrize(
    ("flags", "replaced", "words"),
    [
        (0, False, "no permission to write in .*there"),
        (0, True, "no permission to write in .*folder$"),
        (os.ST_RDONLY, True, "folder is read-only"),
    ],
)
def test_a_closed_place(tmp_path, monkeypatch, flags, replaced, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "there").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    with pytest.raises(ConfigError, match=words):
        check_place(str(folder / "there"), "output", replaced=replaced)
