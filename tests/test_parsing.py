import sys

import pytest

from penstock import parsing
from penstock.errors import ConfigError
from penstock.parsing import (
    MAX_NESTING,
    decode_json,
    decode_text,
    is_too_deep,
    read_file,
    read_yaml,
    repeated_key,
)


def nested(depth):
    value: object = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def test_depth_is_bounded():
    assert not is_too_deep(nested(MAX_NESTING))
    assert is_too_deep(nested(MAX_NESTING + 1))
    assert not is_too_deep({"a": [1.5] * 1000, "b": ["x"]})
    circle: list[object] = []
    circle.append((circle, circle))
    assert is_too_deep(circle)
    parts: list[object] = []
    for _ in range(100):
        parts = [parts, parts]  # 2**100 paths through 100 lists
    assert not is_too_deep(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": ', "too early"),
        (b"[" * 100_000, "nested more than 256 deep"),
        (b"[" * 300 + b"]" * 300, "nested more than 256 deep"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16, not UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16LE, not UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16BE, not UTF-8"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32, not UTF-8"),
        (b'{"a": "\xff"}', "invalid UTF-8"),
        ('{"a": "\udcff"}', "UTF-8"),
    ],
)
def test_what_is_no_json_is_told(data, message):
    with pytest.raises(ValueError, match=message):
        decode_json(data)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"a": 1, "b": {"a": [{"c": 1e400, "d": 12}]}}', None),
        (b'{"a": 1, "b": 2, "a": 1}', "a"),
        (b'{"a": [{"b": {"c": "", "\\u0063": ""}}]}\n', "c"),
        (b'[{"a": 1}, {"a": 1}]', None),
        # In time that grows with its length: it may come from a stranger.
        (
            b'{"": 1%s, "k199999": 1}' % b"".join(b', "k%d": 1' % n for n in range(200_000)),
            "k199999",
        ),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, None),
    ],
)
def test_a_key_that_stands_twice(text, key):
    assert repeated_key(text) == key


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert decode_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert decode_text(b"\xef\xbb\xbfa") == "a"
    with pytest.raises(ValueError, match="invalid UTF-8 in line 2"):
        decode_text(b"a\n\xff")


def test_a_file_of_settings_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(parsing, "_MAX_FILE_BYTES", 1 << 20)
    assert read_file(__file__).startswith(b"import sys")
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_file("/dev/zero")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: 1\nb: [", "not valid YAML: line 2"),
        (b"a: " + b"[" * 20 * sys.getrecursionlimit(), "nested"),
        (b"a: &x [*x]", "nested"),
        (b"a: 2026-13-45", "a date or number that there is not"),
        (b"a: !!timestamp x", "a date or number that there is not"),
        (b"a: !!python/object:os.system {}", "not valid YAML"),
        ("a: 1".encode("utf-16"), "UTF-16"),
        (b"a: \xff", "invalid UTF-8 in line 1"),
    ],
)
def test_yaml_that_cannot_be_read(tmp_path, data, message):
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"c\.yaml .*{message}"):
        read_yaml(tmp_path / "c.yaml")


def test_yaml_with_a_byte_order_mark(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": 1}
