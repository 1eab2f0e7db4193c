import msgspec
import pytest

from penstock.parsing import json_fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": \n', "it ends too early"),
        (b'["abc', "it ends too early"),
        (b'["abc\\', "it ends too early"),
        (b'["abc\\"', "it ends too early"),
        (b"[1, tru", "it ends too early"),
        (b"[1, -", "it ends too early"),
        (b"hello", "unexpected text at column 1"),
        (b'  {"a": "b"c}', "unexpected text at column 12"),
        (b'{"a"\n\n: 1 2}', "unexpected text at line 3, column 5"),
        ('["é", x]', "unexpected text at column 7"),
        (b'{"a": 1}}', "more text after its end, at column 9"),
        (b'{"a": 1}\n{"a": 2}\n', "more text after its end, at line 2, column 1"),
        (b"[1, NaN]", "NaN and Infinity are not JSON"),
        (b"[-Infinity]", "NaN and Infinity are not JSON"),
        (b'["\xff"]', "invalid UTF-8"),
        (b'["\\ud800"]', "it holds a lone surrogate"),
        ('["\ud800"]', "it holds a lone surrogate"),
        (b"[1e999]", "it holds a number that is out of range"),
        (b"[" + b"1" * 5000 + b"]", "a number has too many digits"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"x" * (1 << 21), "it is not valid JSON"),
    ],
)
def test_faults(text, fault):
    with pytest.raises((msgspec.DecodeError, ValueError, RecursionError)):
        msgspec.json.decode(text)
    assert json_fault(text) == fault
