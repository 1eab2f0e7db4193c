import errno
import os

import pytest

from penstock.batch.write.outputs import is_own, place, stamp_of
from penstock.errors import OutputError


@pytest.fixture
def made(tmp_path):
    """A finished output in a state folder: a file, and a directory of files."""
    state = tmp_path / "state"
    (state / "final").mkdir(parents=True)
    (state / "final" / "part-00000.parquet").write_text("new")
    (state / "final.jsonl").write_text("new")
    return state


@pytest.fixture(params=["links", "none", "another"])
def links(request, monkeypatch):
    """A file system with links, one without, and another one than that of the state."""
    if request.param == "links":
        return
    code = errno.EPERM if request.param == "none" else errno.EXDEV
    replace, rename = os.replace, os.rename

    def far(source, target):
        return code == errno.EXDEV and os.path.dirname(source) != os.path.dirname(target)

    def link(source, target):
        raise OSError(errno.EEXIST if os.path.lexists(target) else code, "no")

    def moving(real):
        def move(source, target):
            if far(source, target):
                raise OSError(code, "no")
            return real(source, target)

        return move

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", moving(replace))
    monkeypatch.setattr(os, "rename", moving(rename))


@pytest.mark.usefixtures("links")
def test_a_file_gets_to_its_place_as_it_is(made, tmp_path):
    final, target = made / "final.jsonl", tmp_path / "out.jsonl"
    stamp = stamp_of(final)
    place(final, str(target), None)
    assert (stamp_of(target), target.read_text()) == (stamp, "new")
    assert not final.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"state", "out.jsonl"}


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("there", [False, True])
def test_a_directory_gets_to_its_place_as_it_is(made, tmp_path, there):
    final, target = made / "final", tmp_path / "out"
    stamp = stamp_of(final)
    if there:
        target.mkdir(0o750)
    place(final, f"{target}/", None)
    assert stamp_of(target) == stamp
    assert not final.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"state", "out"}
    if there:
        assert target.stat().st_mode & 0o777 == 0o750


@pytest.mark.usefixtures("links")
def test_what_is_known_is_replaced_and_nothing_else(made, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    known = stamp_of(target)
    with pytest.raises(OutputError, match="not overwritten"):
        place(made / "final.jsonl", str(target), None)
    target.write_text("older")
    with pytest.raises(OutputError, match="not overwritten"):
        place(made / "final.jsonl", str(target), known)
    assert target.read_text() == "older"
    place(made / "final.jsonl", str(target), stamp_of(target))
    assert target.read_text() == "new"


@pytest.mark.usefixtures("links")
def test_a_directory_is_replaced_file_by_file(made, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    for name in ("part-00000.parquet", "part-00001.parquet", "README"):
        (target / name).write_text("old")
    known = stamp_of(target)
    (target / "part-00002.parquet").write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        place(made / "final", str(target), known)
    (target / "part-00002.parquet").unlink()
    place(made / "final", str(target), known)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "part-00000.parquet": "new",
        "README": "old",
    }


def test_a_place_on_another_file_system_that_is_full_is_named(made, tmp_path, monkeypatch):
    def full(source, target):
        with open(target, "w") as begun:
            begun.write("n")
        raise OSError(errno.ENOSPC, "full", os.fspath(source))

    def far(source, target):
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(os, "link", far)
    monkeypatch.setattr(os, "replace", far)
    monkeypatch.setattr("shutil.copy2", full)
    target = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="full") as caught:
        place(made / "final.jsonl", str(target), None)
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert (made / "final.jsonl").read_text() == "new"


def test_what_comes_between_the_look_and_the_move_stays(made, tmp_path, monkeypatch):
    target = tmp_path / "out.jsonl"
    monkeypatch.setattr(
        "penstock.private_files.open_to_usual", lambda path, folder: target.write_text("mine")
    )
    with pytest.raises(OutputError, match="not overwritten"):
        place(made / "final.jsonl", str(target), None)
    assert target.read_text() == "mine"


def test_an_empty_directory_is_nothing_and_a_dangling_link_is_something(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    assert is_own(tmp_path / "empty", None)
    assert is_own(tmp_path / "none", None)
    assert not is_own(tmp_path / "link", None)
    assert not is_own(tmp_path, None)
