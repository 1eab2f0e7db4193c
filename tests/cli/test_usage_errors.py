import click
import pytest

from penstock.cli.commands import cli, usage_fault


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            "nosuch",
            "there is no such command; there are calibrate, chat, demo, eval, explain, models,"
            " plan, run, serve",
        ),
        ("--nosuch", "there is no option --nosuch"),
        ("run", "INPUT is missing"),
        ("run a b -o c", "there are more arguments than the command takes"),
        ("run a -o", "-o needs a value, or takes none and was given one"),
        ("run a -o c --fresh=1", "--fresh needs a value, or takes none and was given one"),
        ("run a -o c --order z", "--order must be 'input' or 'done'"),
        ("run a -o c --temperature hot", "--temperature must be a number, at least 0"),
        ("run a -o c --top-p 0", "--top-p must be a number, more than 0 and at most 1"),
        ("run a -o c --seed x", "--seed must be a whole number"),
        ("run a -o c --max-tokens 0", "--max-tokens must be a whole number, at least 1"),
        ("explain .", "CONFIG.yaml must be the path of a file"),
    ],
)
def test_faults(line, fault):
    with pytest.raises(click.UsageError) as caught:
        cli.main(line.split(), prog_name="penstock", standalone_mode=False)
    assert usage_fault(caught.value) == fault


def test_a_near_option_is_named():
    with pytest.raises(click.UsageError) as caught:
        cli.main(["run", "a", "--limt", "3"], standalone_mode=False)
    assert usage_fault(caught.value).startswith("there is no option --limt. Did you mean --limit")
