"""Copies of adapters on disk: bounded, never removed under somebody's hands, cleaned of what was
left half done.
"""

import os

import fsspec
import pytest

from penstock.serve.adapters import KEEP_S, AdapterCache


@pytest.fixture
def take_in(tmp_path):
    """Copies an adapter of so many bytes into the cache, used so long ago; gives its directory."""

    def take(cache, name, size, ago=0.0):
        source = tmp_path / "source" / name
        source.mkdir(parents=True)
        (source / "adapter_config.json").write_text(name.ljust(size, "."))
        _, path = cache.take_in(fsspec.filesystem("file"), [str(source / "adapter_config.json")])
        then = os.stat(path).st_mtime - ago
        os.utime(path, (then, then))
        return path

    return take


def names(cache):
    return {entry.name for entry in cache.folder.iterdir()}


def test_the_least_recently_used_leave_beyond_the_limit(tmp_path, take_in):
    cache = AdapterCache(tmp_path / "cache", 250)
    old, older = (
        take_in(cache, name, 100, ago) for name, ago in (("a", KEEP_S + 10), ("b", KEEP_S + 20))
    )
    new = take_in(cache, "c", 100)
    assert [os.path.exists(path) for path in (old, older, new)] == [True, False, True]
    assert len(names(cache)) == 2


def test_what_was_used_of_late_stays_whatever_the_limit(tmp_path, take_in):
    cache = AdapterCache(tmp_path / "cache", 0)
    first, second = take_in(cache, "a", 100, KEEP_S + 10), take_in(cache, "b", 100)
    assert [os.path.exists(path) for path in (first, second)] == [False, True]
    assert cache.touch(second)
    assert not cache.touch(first)


def test_what_a_killed_process_left_is_removed_in_time(tmp_path, take_in):
    cache = AdapterCache(tmp_path / "cache", 1000)
    for name, ago in (
        (".arriving-old", KEEP_S + 10),
        (".arriving-now", 0.0),
        (".leaving-old", KEEP_S + 10),
    ):
        half = cache.folder / name
        half.mkdir(parents=True)
        (half / "adapter_model.safetensors").write_text("half")
        then = os.stat(half).st_mtime - ago
        os.utime(half, (then, then))
    path = take_in(cache, "a", 100)
    assert names(cache) == {".arriving-now", os.path.basename(path)}
