import pytest

from penstock.http.event_stream import EventReader

STREAM = (
    'data: {"a": "Grüße"}\n\n: a comment\n\nevent: named\nid: 3\ndata:no space\n\r\ndata: one\r\ndata: two\r\n\r\n'
    "data: cr\r\rdata: [DONE]\n\n"
).encode()
EVENTS = ['{"a": "Grüße"}'.encode(), b"no space", b"one\ntwo", b"cr", b"[DONE]"]


def test_whole():
    assert EventReader().feed(STREAM) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_in_pieces(size):
    reader = EventReader()
    events = []
    for start in range(0, len(STREAM), size):
        events += reader.feed(STREAM[start : start + size])
    assert events == EVENTS


def test_an_unfinished_event_is_none():
    assert EventReader().feed(b"data: half") == []


def test_an_event_without_end_is_refused():
    reader = EventReader(limit=100)
    reader.feed(b"data: " + b"0" * 90)
    with pytest.raises(ValueError, match="100 bytes"):
        reader.feed(b"0123456789")
    with pytest.raises(ValueError, match="100 bytes"):
        EventReader(limit=100).feed(b"data: x\n" * 101)
