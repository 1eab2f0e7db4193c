from hypothesis import given, strategies as st

from penstock.engines.text.stop_strings import StopStrings


def shown(pieces, stop):
    cutter = StopStrings(stop)
    text = "".join(cutter.push(piece) for piece in pieces)
    return text + ("" if cutter.stopped else cutter.flush()), cutter.stopped


def test_without_stop_strings_text_passes_at_once():
    assert StopStrings(()).push("abc") == "abc"


def test_a_stop_string_in_pieces_is_never_shown():
    assert shown(["Hello E", "N", "D and more"], ("END",)) == ("Hello ", True)


def test_what_only_looked_like_one_is_shown_later():
    cutter = StopStrings(("END",))
    assert cutter.push("the EN") == "the "
    assert cutter.push("GAGED") == "ENGAGED"
    assert not cutter.stopped


def test_the_first_of_several_wins():
    assert shown(["a|b;c"], (";", "|")) == ("a", True)


def test_nothing_comes_after_the_stop():
    cutter = StopStrings(("x",))
    cutter.push("axb")
    assert cutter.push("more") == ""
    assert cutter.flush() == ""


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_pieces_make_no_difference(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [at for s in stop if (at := text.find(s)) >= 0]
    # Piece by piece the stop string that ends first is met first, so where the cut begins may
    # differ.
    result, stopped = shown(pieces, tuple(stop))
    assert stopped == bool(found)
    if not found:
        assert result == text
    else:
        assert text.startswith(result)
        assert not any(s in result for s in stop)
