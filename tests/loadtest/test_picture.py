from xml.etree import ElementTree

import pytest

from penstock.loadtest.picture import distribution, line_chart

NAME = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("log_x", [True, False])
@pytest.mark.parametrize("line", [[], [(0, 0)], [(5, 5)], [(1, 2), (1000, 30)], [(0.3, 1e-9)]])
def test_every_chart_is_well_formed_and_stays_inside(line, log_x):
    text = line_chart("a < b", "x & y", "z", {"<one>": line}, log_x=log_x, dots=True)
    root = ElementTree.fromstring(text)
    for circle in root.iter(f"{NAME}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 720
        assert 0 <= float(circle.attrib["cy"]) <= 420
    assert "a < b" in [title.text for title in root.iter(f"{NAME}title")]


def test_marks_and_many_points():
    line = [(number, number) for number in range(1, 5001)]
    root = ElementTree.fromstring(
        line_chart("t", "x", "y", {"a": line, "b": line}, marks={"knee": (10, 10)})
    )
    lines = list(root.iter(f"{NAME}polyline"))
    assert [len(one.attrib["points"].split()) for one in lines] == [400, 400]
    assert "knee" in [one.text for one in root.iter(f"{NAME}text")]


def test_a_distribution_ends_at_all():
    assert distribution([3, 1]) == [(1, 50), (3, 100)]
