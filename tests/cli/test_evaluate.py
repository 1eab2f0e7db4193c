"""`penstock eval`, with the scores given."""

import json

import pytest
from click.testing import CliRunner

from penstock.batch.evaluation import Evaluation
from penstock.cli.evaluate import evaluate
from penstock.errors import ConfigError, OutputError


@pytest.fixture
def run(monkeypatch):
    """Runs the command on some scores."""

    def run(found, *argv):
        async def scored(*_, **__):
            return found

        monkeypatch.setattr("penstock.batch.evaluation.aevaluate", scored)
        return CliRunner().invoke(evaluate, ["in.jsonl", "--expected", "is", *argv])

    return run


def test_what_was_found_is_shown_before_what_can_fail(run, tmp_path):
    found, short = Evaluation("exact", [1.0, 0.0]), Evaluation("exact", [1.0])
    short.save(tmp_path / "short.json")
    ended = run(found, "--against", str(tmp_path / "short.json"), "-o", str(tmp_path / "out.json"))
    assert isinstance(ended.exception, ConfigError)
    assert ended.output.startswith("exact: 0.500")
    assert (tmp_path / "out.json").exists()
    ended = run(found, "-o", "/dev/full")
    assert isinstance(ended.exception, OutputError)
    assert ended.output.startswith("exact: 0.500")


def test_scores_of_another_form_are_refused_before_any_row_is_asked(run, tmp_path):
    Evaluation("choice", [1.0]).save(tmp_path / "choice.json")
    ended = run(None, "--against", str(tmp_path / "choice.json"))
    assert "is of the form 'choice', not 'exact'" in str(ended.exception)


def test_a_place_that_cannot_be_written_is_refused_before_any_row_is_asked(run, tmp_path):
    ended = run(None, "-o", str(tmp_path))
    assert isinstance(ended.exception, ConfigError)
    assert f"output: {tmp_path} cannot be written: it is a directory" in str(ended.exception)


def test_the_help_says_why_there_is_no_seed():
    shown = CliRunner().invoke(evaluate, ["--help"]).output
    assert "Nothing is drawn at random" in shown
    assert "--temperature" not in shown


def test_json_has_the_mean_and_its_interval(run):
    ended = run(Evaluation("exact", [1.0, 0.0]), "--json")
    found = json.loads(ended.output)
    assert found["mean"] == 0.5
    assert 0 < found["interval"][0] < 0.5 < found["interval"][1] < 1


def test_nothing_but_failures_is_a_failure(run):
    assert run(Evaluation("exact", [0.0, 0.0], failed=2)).exit_code == 1
    assert run(Evaluation("exact", [0.0, 1.0], failed=1)).exit_code == 0
