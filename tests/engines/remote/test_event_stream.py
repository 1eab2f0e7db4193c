import pytest

from penstock.engines.remote.stream import EventReader

STREAM = (
    'data: {"a": "Grüße"}\n\n: a comment\n\nevent: named\nid: 3\ndata:no space\n\r\ndata:'
    " one\r\ndata: two\r\n\r\ndata: cr\r\rdata: [DONE]\n\n"
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


def test_events_without_data_are_none():
    assert EventReader().feed(
        b"data: \n\ndata:\n\ndata\n\nevent: a\n\nid: 1\n\n: x\n\ndata: y\n\n"
    ) == [b"y"]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_byte_order_mark_is_none(size):
    stream, reader, events = b"\xef\xbb\xbfdata: x\n\n", EventReader(), []
    for start in range(0, len(stream), size):
        events += reader.feed(stream[start : start + size])
    assert events == [b"x"]


@pytest.mark.parametrize(
    ("stream", "rest"),
    [
        (b"data: a\n\ndata: b", b"b"),
        (b"data: b\r\n", b"b"),
        (b"data: a\n\n", b""),
        (b"\n", b""),
        (b": x", b""),
    ],
)
def test_the_rest_is_an_event_that_was_not_ended(stream, rest):
    reader = EventReader()
    reader.feed(stream)
    assert reader.rest() == rest
    assert not reader.is_json


def test_json_is_no_stream_of_events():
    reader = EventReader()
    for part in (b"\n ", b'{"a":\n\n', b"1}\n\n"):
        assert reader.feed(part) == []
    assert reader.is_json
    assert reader.rest().strip() == b'{"a":\n\n1}'


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n", b"\r\n\n", b"\n\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_event_in_pieces_ends_wherever_they_are_cut(end, size):
    stream, events = b"data: a" + end + b"data: b" + end + b"data: c", []
    reader = EventReader()
    for start in range(0, len(stream), size):
        events += reader.feed(stream[start : start + size])
    assert [*events, reader.rest()] == [b"a", b"b", b"c"]
