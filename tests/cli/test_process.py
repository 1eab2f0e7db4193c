import errno
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.cli import process
from penstock.cli.explain import explain
from penstock.cli.process import DECIMAL, size
from penstock.errors import (
    ConfigError,
    EngineStartError,
    InputError,
    MissingExtraError,
    OutputError,
)


@pytest.mark.parametrize(
    ("count", "binary", "decimal"),
    [
        (0, "0 B", "0 B"),
        (1023, "1,023 B", "1.02 kB"),
        (1500, "1.46 KiB", "1.5 kB"),
        (999_960, "977 KiB", "1 MB"),
        (1000 << 20, "1,000 MiB", "1.05 GB"),
        (1023 << 20, "1,023 MiB", "1.07 GB"),
        (5 << 40, "5,120 GiB", "5,498 GB"),
    ],
)
def test_sizes(count, binary, decimal):
    assert (size(count), size(count, DECIMAL)) == (binary, decimal)


def test_many_cores_and_odd_names_are_shown_shortly(tmp_path):
    model = 'model_loading_config: {model_id: m, model_source: "a\\ab"}'
    replicas = "deployment_config: {num_replicas: 1000}"
    (tmp_path / "m.yaml").write_text(
        f"llm_configs: [{{{model}, llm_engine: simulated, {replicas}}}]"
    )
    shown = CliRunner().invoke(explain, [str(tmp_path / "m.yaml")], catch_exceptions=False).output
    assert shown.startswith("m: a\\x07b on simulated")
    assert "; and 968 more" in shown


def test_nothing_is_imported_before_ctrl_c_is_handled():
    code = """
import sys, types
sys.path.insert(0, sys.argv[1])
import penstock.cli
def run():
    import signal
    assert signal.getsignal(signal.SIGINT) is penstock.cli.leave
module = sys.modules["penstock.cli.process"] = types.ModuleType("process")
module.run = lambda: print("enum" in sys.modules) or run()
penstock.cli.main()
"""
    source = str(Path(__file__).parents[2] / "src")
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, source], capture_output=True, text=True
    )
    assert (told.stdout, told.stderr) == ("False\n", "")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (InputError("cannot be read"), 2),
        (MissingExtraError("s3fs", "s3"), 2),
        (caused(EngineStartError("no key"), ConfigError("no key")), 2),
        (caused(OutputError("no space"), ConfigError("other")), 1),
        (EngineStartError("no memory"), 1),
        (ZeroDivisionError("a fault"), 1),
    ],
)
def test_mistakes_have_an_exit_code_of_their_own(monkeypatch, capsys, error, code):
    class Command:
        def main(self, **_):
            raise error

    monkeypatch.setattr("penstock.cli.commands.cli", Command())
    assert process._code_of_command() == code
    assert str(error) in capsys.readouterr().err


def test_a_limit_on_open_files_is_no_fault_of_ours(monkeypatch, capsys):
    class Command:
        def main(self, **_):
            raise OSError(errno.EMFILE, "Too many open files", "rows.jsonl.penstock")

    monkeypatch.setattr("penstock.cli.commands.cli", Command())
    assert process._code_of_command() == 1
    said = capsys.readouterr().err
    assert "ulimit -n" in said
    assert "fault" not in said
