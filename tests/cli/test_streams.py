"""The command line in odd company: standard streams that are closed or full, and a Ctrl-C at any
moment.
"""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

RUN = ("run", "in.jsonl", "--engine", "simulated", "--model", "x", "--prompt", "{text}")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 3)
    return tmp_path


def shell(folder, redirect, *args):
    """The command, run by a shell that redirects its streams."""
    line = f'"$0" -m penstock.cli "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *args], cwd=folder, capture_output=True, timeout=60
    )


def test_standard_error_that_is_closed_or_full(folder):
    for redirect in ("2>&-", "2>/dev/full"):
        done = shell(folder, redirect, *RUN, "-o", "-")
        assert done.returncode == 0
        assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok"] * 3
        for args in (("run", "absent.jsonl", "-o", "-"), ("run", "--nonsense")):
            done = shell(folder, redirect, *args)
            assert (done.returncode, done.stdout) == (2, b"")


def test_standard_output_that_is_closed(folder):
    done = shell(folder, ">&-", *RUN, "-o", "-")
    assert (done.returncode, done.stderr) == (1, b"penstock: standard output is closed\n")
    done = shell(folder, "<&- >&- 2>&-", *RUN, "-o", "out.jsonl")
    assert done.returncode == 0
    assert len((folder / "out.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    "args", [("--version",), ("run", "--help"), ("plan", *RUN[1:]), (*RUN, "-q", "-o", "-")]
)
def test_standard_output_that_is_full(folder, args):
    done = shell(folder, ">/dev/full", *args)
    assert done.returncode == 1
    assert re.fullmatch(
        r"penstock: .*cannot be written: .*No space left on device\n", done.stderr.decode()
    )


def test_standard_input_that_is_closed(folder):
    done = shell(folder, "<&-", "run", "-", *RUN[2:], "-o", "-")
    assert (done.returncode, done.stderr) == (2, b"penstock: standard input is closed\n")


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", b"\xe9"), ("koi8-r", b"\\u00e9")])
def test_standard_output_that_lacks_characters(folder, monkeypatch, encoding, shown):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (folder / "out.jsonl").write_text('{"text": "日本 é 😀"}\n', encoding="utf-8")
    (folder / "out.jsonl.penstock").mkdir()
    (folder / "out.jsonl.penstock" / "manifest.json").write_text("{}")
    done = shell(folder, "", "jobs", "tail", "out.jsonl")
    assert (done.stdout, done.stderr) == (
        b'{"text": "\\u65e5\\u672c %s \\ud83d\\ude00"}\n' % shown,
        b"",
    )


@pytest.mark.parametrize("group", ["jobs", "bench"])
def test_a_group_alone_shows_its_help(folder, group):
    done = shell(folder, "", group)
    assert f"Usage: penstock {group}".encode() in done.stderr
    assert b"no such command" not in done.stderr


def test_a_reader_that_leaves_early(folder):
    done = shell(folder, "| head -n 0", "plan", *RUN[1:])
    assert done.stderr == b""


def test_names_and_prompts_that_are_no_text(folder):
    odd = os.fsdecode(b"caf\xe9.jsonl")
    os.rename(folder / "in.jsonl", f"{folder}/{odd}")
    done = shell(folder, "", "run", odd, *RUN[2:], "-o", f"out-{odd}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(b"Output: out-caf\\udce9.jsonl\n")
    done = shell(folder, "", "run", odd, "-o", "out.jsonl", "--prompt", os.fsdecode(b"\xe9{text}"))
    assert (done.returncode, done.stderr) == (2, b"penstock: prompt: is no UTF-8 at character 1\n")


STARTED = """
import os, sys
ready, gate, module = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.write(ready, b"x")
            sys.meta_path.remove(self)
            os.read(gate, 1)  # where the signals find it
sys.meta_path.insert(0, Watch())
from penstock.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("click", b""),
        ("penstock.cli.run", b""),
        ("penstock.batch.job.job", b""),
        ("penstock.engines.simulated.engine", b"penstock: stopped\n"),
    ],
)
def test_ctrl_c_while_it_starts(folder, module, told):
    reading, writing = os.pipe()
    gate, opener = os.pipe()
    job = subprocess.Popen(
        [sys.executable, "-c", STARTED, str(writing), str(gate), module, *RUN, "-o", "-"],
        cwd=folder, pass_fds=[writing, gate], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    os.close(gate)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    job.send_signal(signal.SIGINT)
    job.send_signal(signal.SIGINT)
    os.close(opener)
    assert job.communicate(timeout=60) == (b"", told)
    assert job.returncode == 130


def test_ctrl_c_that_is_to_be_ignored(folder):
    line = 'trap "" INT; exec "$0" -m penstock.cli "$@"'
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    args = [sys.executable, "--version"]
    assert (
        subprocess.run(
            ["sh", "-c", line, *args], cwd=folder, capture_output=True, timeout=60
        ).returncode
        == 0
    )
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -c "$@"', sys.executable,
         "import sys; sys.argv = ['penstock', '--version']\n"
         f"from penstock.cli import main\nmain()\n{code}"],
        cwd=folder, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.endswith(b"True\n")


def test_a_prompt_without_a_column_is_said_once(folder):
    for quiet in ((), ("-q",)):
        done = shell(folder, "", *RUN[:-1], "hello", "-o", "-", *quiet)
        assert done.returncode == 0
        assert (
            done.stderr.count(
                b"The prompt names no {column}, so all rows ask the same. Columns: text.\n"
            )
            == 1
        )
