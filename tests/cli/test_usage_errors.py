import click
import pytest

from penstock.cli.commands import cli, usage_fault
from penstock.errors import ConfigError, PenstockError


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "nosuch",
            "there is no such command; there are bench, calibrate, chat, demo, eval, explain,"
            " jobs, models, plan, run, serve",
        ),
        ("--nosuch", "there is no option --nosuch"),
        ("run", "INPUT is missing"),
        (
            "run a b -o c",
            "there are more arguments than the command takes: one INPUT; several files go into a"
            " glob in quotes, or a directory",
        ),
        (
            "serve demo demo",
            "there are more arguments than the command takes: one MODEL; several models go into a"
            " configuration file, CONFIG.yaml",
        ),
        ("models list x", "there are more arguments than the command takes"),
        ("run a -o", "-o needs a value, or takes none and was given one"),
        ("run a -o c --fresh=1", "--fresh needs a value, or takes none and was given one"),
        ("run a -o c --order z", "--order must be 'input' or 'done'"),
        ("run a -o c --temperature hot", "--temperature must be a number, at least 0"),
        ("run a -o c --temperature nan", "--temperature must be a number, at least 0"),
        ("serve --max-body-mb 1e308", "--max-body-mb must be at most 1,000,000,000"),
        ("serve --max-body-mb inf", "--max-body-mb must be at most 1,000,000,000"),
        ("serve --max-body-mb nan", "--max-body-mb must be a number, more than 0"),
        (
            "serve --store-days 1e308",
            "--store-days must be a number, more than 0 and at most 100000",
        ),
        (f"run a -o c --limit {10**30}", "--limit must be at most 1,000,000,000,000,000"),
        ("run a -o c --top-p 0", "--top-p must be a number, more than 0 and at most 1"),
        ("run a -o c --seed x", "--seed must be a whole number"),
        ("run a -o c --max-tokens 0", "--max-tokens must be a whole number, at least 1"),
        ("explain .", "CONFIG.yaml must be the path of a file"),
        (f"serve demo --batch-dir {__file__}", "--batch-dir must be the path of a directory"),
    ],
)
def test_faults(line, fault):
    with pytest.raises(click.UsageError) as caught:
        cli.main(line.split(), prog_name="penstock", standalone_mode=False)
    assert usage_fault(caught.value) == fault


@pytest.mark.parametrize(
    "line",
    ["models list --url http://a", "models --url http://a list", "models --api-key k list"],
)
def test_the_models_of_a_server_are_listed_without_a_command(line):
    with pytest.raises(ConfigError, match=r"^--(url|api-key): .*: penstock models --url URL"):
        cli.main(line.split(), standalone_mode=False)


def test_a_near_option_is_named():
    with pytest.raises(click.UsageError) as caught:
        cli.main(["run", "a", "--limt", "3"], standalone_mode=False)
    assert usage_fault(caught.value).startswith("there is no option --limt. Did you mean --limit")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("calibrate --labels a --labels b", "labels: give each as QUESTION=COLUMN"),
        ("calibrate --labels =b", "labels: give each as QUESTION=COLUMN"),
        ("calibrate --labels choice=a --labels choice=b", "the question 'choice' has two columns"),
        ("calibrate --labels a -o none/c.json", "there is no directory none"),
        ("calibrate --labels a --picture .", "it is a directory"),
        ("calibrate --labels a --picture a.png", "picture: is drawn as SVG"),
        ("eval --form choice --expected a -o none/e.json", "there is no directory none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(line, why, monkeypatch):
    async def worked(*_args, **_options):
        raise AssertionError("it began")

    monkeypatch.setattr("penstock.batch.decisions.calibrate.acalibrate", worked)
    monkeypatch.setattr("penstock.batch.evaluation.aevaluate", worked)
    command, *options = line.split()
    with pytest.raises(PenstockError, match=why):
        cli.main([command, "in.jsonl", *options, "--choices", "a,b"], standalone_mode=False)
