from penstock.engines.openvino.options import reason_of


def test_the_last_line_without_its_place():
    error = RuntimeError(
        "Check failed at src/a.cpp:12\n[10:11:12] /build/xgrammar/cpp/regex.cc:75: Lookahead is not"
        " supported\n\n"
    )
    assert reason_of(error) == "Lookahead is not supported"


def test_an_empty_message_gives_the_kind():
    assert reason_of(ValueError()) == "ValueError"


def test_the_reason_of_a_text_that_was_cut_within_a_character():
    text = "first line\nEBNF parser error at line 1: é".encode()
    error = UnicodeDecodeError("utf-8", text[:-1], len(text) - 2, len(text) - 1, "invalid")
    assert reason_of(error).startswith("EBNF parser error at line 1: ")
