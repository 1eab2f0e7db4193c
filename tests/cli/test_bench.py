import json
import re
import shlex
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from penstock.cli.bench import _SHAPES, _distributions, _write
from penstock.cli.commands import cli
from penstock.errors import OutputError, PenstockError
from penstock.loadtest.client import Sample
from penstock.loadtest.study import Run
from penstock.loadtest.workload import SHAPES


def test_every_shape_has_its_name_here():
    assert set(_SHAPES) == set(SHAPES)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a b", "two targets need --compare"),
        ("null --compare", "--compare: needs two targets, not 1"),
        ("null null --compare --sweep rate", "--sweep: does not stand beside --compare"),
        ("null --rounds 2", "--rounds: needs --compare"),
        ("null --levels 1,2", "--levels: needs --sweep"),
        ("null --sweep clients --levels 2,1", "--levels: must be growing whole numbers"),
        ("null --sweep clients --levels 1.5", "--levels: must be growing whole numbers"),
        ("null --sweep rate --clients 2", "--clients: give the levels with --levels"),
        ("null --rate 2 --clients 3", "--rate: does not stand beside --clients"),
        ("null --ramp 3", "--ramp: must be two rates"),
        ("null --ramp 0:0", "--ramp: must be two rates"),
        ("null --ramp nan:1", "--ramp: must be two rates"),
        ("null --ramp 1:2 --requests 5", "--requests: a ramp has its rates"),
        ("null --seconds 3", "--seconds: needs --ramp"),
        ("null --trace-speed 3", "--trace-speed: needs --trace"),
        ("null --trace none.jsonl", "none.jsonl cannot be read"),
        ("null --body []", "--body: must be a JSON object"),
        ("null --body '{\"stream\": true}'", "--body stream: is set by the measurement"),
        ("null --schema none.json", "--schema: none.json cannot be read: No such file"),
        ("null --engine vllm", "--engine: needs a MODEL"),
        ("m --engine-kwargs x", "--engine-kwargs: not valid JSON"),
        ("null --no-stream --slo-ttft-ms 3", "only --slo-e2e-ms is known without streaming"),
        ("null --sweep clients --seconds 3", "--seconds: needs --ramp"),
        ("null --sweep clients --trace-speed 3", "--trace-speed: needs --trace"),
        ("null --body '{\"ignore_eos\": false}' --ignore-eos", "--body ignore_eos: is set by"),
        ("null --workload shared-prefix --max-input 64", "max_input: a prefix alone has 256"),
        ("null --prefixes 2", "only the workload shared-prefix has them"),
        ("null --json none/x.json", "there is no directory none"),
        ("null --picture none/x.svg", "there is no directory none"),
        ("http://a:b", "URL: 'http://a:b' is no address"),
        ("demo --api-key k", "--api-key: is of a server that runs"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(line, why, monkeypatch):
    def started(*_args):
        raise AssertionError("it began")

    monkeypatch.setattr("penstock.loadtest.target.address_of", started)
    with pytest.raises(PenstockError, match=why):
        cli.main(["bench", "serve", *shlex.split(line)], standalone_mode=False)


def test_figures_are_shown_before_they_are_written(capsys):
    report = {"text": ["the figures"], "figures": {}, "picture": "<svg/>", "failed": False}
    for name in ("as_json", "picture"):
        with pytest.raises(OutputError, match="/dev/full: No space left"):
            _write(report, {"as_json": None, **{name: "/dev/full"}})
        assert capsys.readouterr().out == "the figures\n"


def test_answers_without_text_have_no_time_to_first_token():
    answered = Sample(100.0, 100.0, 100.1, 100.2, 100.2, pieces=2)
    empty = Sample(100.0, 100.0, end=100.2)
    both = _distributions("t", {"": Run([answered, empty], 1.0, 0.1)})
    one = _distributions("t", {"": Run([answered], 1.0, 0.1)})
    points = [re.findall(r'points="([^"]*)"', svg)[0] for svg in (both, one)]
    assert points[0] == points[1]


def test_help_has_examples():
    for command in ("serve", "batch"):
        text = CliRunner().invoke(cli, ["bench", command, "--help"]).output
        assert "Examples:" in text
        assert f"penstock bench {command} demo" in text


@pytest.mark.slow
def test_a_run_a_comparison_and_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--requests", "20", "--output-tokens", "3", "--json", "f.json", "--picture", "p.svg"]

    def bench(*line):
        done = CliRunner().invoke(cli, ["bench", "serve", *line, *common])
        assert done.exit_code == 0, done.output
        ElementTree.parse("p.svg")
        return done.stdout, json.loads((tmp_path / "f.json").read_text())

    text, figures = bench("null", "--slo-ttft-ms", "60000", "--seed", "3")
    assert "load generator: " in text
    assert figures["run"]["output_tokens"] == 60
    assert figures["run"]["good_share"] == 1
    assert figures["workload"]["seed"] == 3
    text, figures = bench("--compare", "null", "null", "--rounds", "2")
    assert "B / A" in text
    assert [len(side) for side in figures["runs"]] == [2, 2]
    text, figures = bench("null", "--sweep", "rate", "--levels", "500,900.5")
    assert "<- knee" in text
    assert [level["load"] for level in figures["levels"]] == ["500 requests/s", "900.5 requests/s"]


@pytest.mark.slow
def test_a_model_is_served_for_the_measurement():
    line = ["bench", "serve", "demo", "--requests", "4", "--clients", "2", "--json", "-"]
    line += ["--workload", "gsm8k"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["run"]["failed"] == 0
