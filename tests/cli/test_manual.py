"""Manual pages from the help."""

from penstock.cli.commands import cli
from penstock.cli.manual import main, pages


def test_each_command_has_a_page():
    written = dict(pages(cli))
    assert {"penstock", "penstock-run", "penstock-serve", "penstock-jobs-list"} <= set(written)
    assert ".SH NAME\npenstock-run \\- Run a model over every row" in written["penstock-run"]
    assert "\\-\\-max\\-tokens" in written["penstock-run"]


def test_no_line_of_help_is_a_request_of_roff():
    for text in dict(pages(cli)).values():
        for line in text.splitlines():
            assert not line.startswith("'")
            assert not line.startswith(".") or line.split()[0] in {".TH", ".SH", ".nf", ".fi"}


def test_an_example_of_two_lines_stays_two():
    (line,) = [one for one in dict(pages(cli))["penstock-run"].splitlines() if "cascade ./" in one]
    assert line.lstrip().startswith("\\-\\-cascade ./large")


def test_they_are_written_into_a_new_folder(tmp_path):
    main(str(tmp_path / "man1"))
    assert (tmp_path / "man1/penstock-run.1").read_text().startswith(".TH PENSTOCK-RUN 1")
