from penstock.engines.openvino.options import reason_of


def test_the_last_line_without_its_place():
    error = RuntimeError(
        "Check failed at src/a.cpp:12\n[10:11:12] /build/xgrammar/cpp/regex.cc:75: Lookahead is not"
        " supported\n\n"
    )
    assert reason_of(error) == "Lookahead is not supported"


def test_an_empty_message_gives_the_kind():
    assert reason_of(ValueError()) == "ValueError"
