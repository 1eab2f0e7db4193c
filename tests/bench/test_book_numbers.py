"""bench/book_numbers.py: its table, its picture, and the commands in them."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import book_numbers
import harness
from book_numbers import BEGIN, END, HEAD, NUMBERS, Found, Number, bar, median, more, printed, times
from harness import Bar, Comparison, Series

BENCH = Path(harness.__file__).parent
SPEED = Comparison("8 rows", "s", {"bare": Series((1.0, 2.0)), "ours": Series((2.0, 6.0))})
ONE, OTHER = (
    Number(what, "python bench/x.py", "{} its time", [times("8 rows", "ours", "bare")])
    for what in ("one", "other")
)


def test_the_page_has_the_rows_of_the_program():
    found = book_numbers.rows(book_numbers.PAGE.read_text())
    assert [*found] == [one.what for one in NUMBERS.values()]
    for one in NUMBERS.values():
        assert found[one.what].endswith(f" | `{one.command}` |"), "measure it again"


def test_the_picture_shows_what_the_page_says():
    page = book_numbers.PAGE.read_text()
    assert book_numbers.PICTURE.read_text() == book_numbers.picture(page)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_command_has_a_program_with_these_options(name):
    number = NUMBERS[name]
    words = number.argv(lambda environment: f"/{environment}/python")
    assert not {"PYTHON", "python", "penstock"} & {*words}
    assert (words[0] == f"/{number.environment}/python") == number.inside
    if number.command.startswith("python "):
        source = (BENCH.parent / words[1]).read_text() + Path(harness.__file__).read_text()
        for option in re.findall(r"--[a-z-]+", number.command):
            assert f'"{option}"' in source
    assert number.shown.count("{}") == len(number.figures)


def test_figures_have_medians_and_their_spread():
    found = Found({"8 rows": SPEED}, [Bar("modules loaded", 0, 1)], "right: 5 of 6")
    figures = {
        times("8 rows", "ours", "bare"): "2.5 × (2..3)",
        more("8 rows", "ours", "bare"): "2.5 s (1..4)",
        median("8 rows", "ours"): "4 s (2..6)",
        bar("modules"): "0",
        printed("right: (.*)"): "5 of 6",
    }
    assert [figure(found) for figure in figures] == [*figures.values()]
    with pytest.raises(SystemExit, match="did not print"):
        printed("wrong: (.*)")(found)


def test_rows_that_were_not_run_stay(monkeypatch):
    monkeypatch.setattr(book_numbers, "NUMBERS", {"one": ONE, "other": OTHER})
    old = {one.what: book_numbers.row(one, "1.5 × its time", "then") for one in (ONE, OTHER)}
    page = book_numbers.written(f"before\n{BEGIN}{END}\nafter\n", old)
    new = book_numbers.row(OTHER, "2 × its time", "now")
    assert book_numbers.written(page, {"other": new}) == (
        f"before\n{BEGIN}{HEAD}{old['one']}\n{new}\n{END}\nafter\n"
    )


def test_a_picture_has_the_chosen_figures_from_the_least(monkeypatch):
    chosen = {
        "one": replace(ONE, drawn=("first & last", 1)),
        "other": replace(OTHER, drawn=("x", 0)),
    }
    monkeypatch.setattr(book_numbers, "NUMBERS", chosen)
    lines = {
        "one": book_numbers.row(ONE, "1 × (1..2) / 9 × (8..10)", "then"),
        "other": book_numbers.row(OTHER, "3 ×", "then"),
    }
    drawn = ElementTree.fromstring(
        book_numbers.picture(book_numbers.written(f"{BEGIN}{END}", lines))
    )
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[1:] == ["x", "3 ×", "first & last", "9 ×"]


def test_it_runs_part_by_part():
    program = [sys.executable, str(BENCH / "book_numbers.py"), "--dry-run", "--only"]
    done = subprocess.run([*program, "import,demo"], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "=== import: python bench/import_time.py",
        "=== demo: penstock demo",
    ]
    done = subprocess.run([*program, "none"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no 'none'" in done.stderr
