import io
import sys

from penstock import stderr


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_nothing_is_said_where_nobody_hears(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        stderr.say("hello")
        assert not stderr.is_terminal()
    assert capsys.readouterr().out == ""


def test_what_is_said_stands_on_standard_error(capsys):
    stderr.say("hello")
    assert capsys.readouterr() == ("", "hello\n")
