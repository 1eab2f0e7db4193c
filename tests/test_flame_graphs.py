"""The pictures of tools/flame_graphs.py."""

from flame_graphs import parsed, picture

RAW = """main (penstock/cli/run.py:1);answer (penstock/engines/simulated/engine.py:2) 60
main (penstock/cli/run.py:1);dumps (json/__init__.py:3) 39
rare (a.py:1) 0
<module> (b.py:1) 1
"""


def test_a_box_is_as_wide_as_its_share_of_all_samples() -> None:
    drawn = picture("a job", parsed(RAW))
    assert "a job, 100 samples" in drawn
    assert "<title>main (penstock/cli/run.py:1): 99.0%</title>" in drawn
    assert "<title>answer (penstock/engines/simulated/engine.py:2): 60.0%</title>" in drawn
    assert "<title>&lt;module&gt; (b.py:1): 1.0%</title>" in drawn
    assert "rare" not in drawn


def test_colours_tell_penstock_from_engine_and_libraries() -> None:
    boxes = picture("a job", parsed(RAW)).split("<g>")[1:]
    colours = [box.split('fill="')[1][:7] for box in boxes]
    assert colours == ["#7cc4bf", "#e0a13d", "#dfe6e6", "#dfe6e6"]
