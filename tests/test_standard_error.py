import io
import sys

from penstock import standard_error


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_nothing_is_said_where_nobody_hears(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        standard_error.say("hello")
        assert not standard_error.is_terminal()
    assert capsys.readouterr().out == ""


def test_what_is_said_stands_on_standard_error(capsys):
    standard_error.say("hello")
    assert capsys.readouterr() == ("", "hello\n")
