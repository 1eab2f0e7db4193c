from hypothesis import given, strategies as st

from penstock.engines.openvino.text_stream import TextStream


def decode(ids):
    """Bytes as tokens: characters of several bytes are unfinished in between."""
    return bytes(ids).decode(errors="replace")


def streamed(data, size):
    stream, text = TextStream(), ""
    pieces = [list(data[at : at + size]) for at in range(0, len(data), size)] or [[]]
    for number, piece in enumerate(pieces):
        stream.add(piece)
        shown, whole = stream.windows()
        text += stream.advance(decode(shown), decode(whole), last=number == len(pieces) - 1)
    return text


@given(st.text(max_size=40), st.integers(1, 5))
def test_the_pieces_add_up_to_the_text(text, size):
    assert streamed(text.encode(), size) == text


def test_an_unfinished_character_is_held_back_until_the_end():
    stream = TextStream()
    stream.add(list("é".encode()[:1]))
    shown, whole = stream.windows()
    assert stream.advance(decode(shown), decode(whole), last=False) == ""
    assert stream.advance(decode(shown), decode(whole), last=True) == "\N{REPLACEMENT CHARACTER}"
