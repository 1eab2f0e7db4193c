"""bench/peers: what is written about a peer, and a run of seconds."""

import argparse
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import compare
import harness
import peer_page
from harness import Bar, Comparison, Series

PEERS = Path(compare.__file__).parent
SPEED = Comparison("8 clients", "tokens/s", {"peer": Series((1, 2, 3)), "ours": Series((4, 6, 9))})
FASTER = Bar("8 clients, tokens/s", 3.0, 2.0, at_least=True)
LATER = Bar("1 client, first token <ms>", 0.5, 0.25)


def test_a_table_has_medians_ratios_and_promises():
    assert peer_page.table([SPEED], [FASTER, LATER]).splitlines() == [
        "| what | side | median (least..greatest) | over the first |",
        "| --- | --- | --- | --- |",
        "| 8 clients | peer | 2 (1..3) tokens/s |  |",
        "|  | ours | 6 (4..9) tokens/s | 3 (3..4) |",
        "",
        "| Penstock over the peer | measured | promised | |",
        "| --- | --- | --- | --- |",
        "| 8 clients, tokens/s | 3 | at least 2 | met |",
        "| 1 client, first token <ms> | 0.5 | at most 0.25 | MISSED |",
    ]


def test_a_picture_has_times_as_fast_where_a_share_of_a_time_is_promised():
    drawn = ElementTree.fromstring(peer_page.picture("A peer", [FASTER, LATER]))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in drawn.iter(f"{space}text")]
    assert texts[2:] == [FASTER.text, "3.00 ×", LATER.text, "2.00 ×"]
    _, faster, later = drawn.iter(f"{space}rect")
    assert (faster.get("width"), later.get("width")) == ("420.0", "280.0")  # of 560 for 4 times


def test_what_is_written_stands_between_the_marks_of_the_peer(tmp_path):
    (tmp_path / "images").mkdir()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    peer_page.write(page, "a", [SPEED], [FASTER, LATER], 3, {"cpu": "X"})
    text = page.read_text()
    assert text.startswith("before\n<!-- a -->\n| what |")
    assert text.endswith("medians of 3 rounds; cpu X.\n<!-- /a -->\nafter\n")
    assert "![1 of 2 promises are kept](images/peer-a.svg)" in text
    assert (tmp_path / "images" / "peer-a.svg").is_file()
    with pytest.raises(SystemExit, match="no place for b"):
        peer_page.write(page, "b", [SPEED], [FASTER], 3, {})


def test_what_a_program_writes_is_read_back(tmp_path, capsys):
    args = argparse.Namespace(json=tmp_path / "figures.json", check=False)
    harness.finish(args, [SPEED], [FASTER, LATER])
    assert harness.recorded(args.json) == ([SPEED], [FASTER, LATER])


def test_two_servers_become_comparisons_and_promises():
    def run(speed, first):
        return {
            "output_tokens_per_s": speed,
            "ttft_ms": {"p50": first},
            "generator_cpu": speed / 1000,
        }

    load = compare.Load("1 client", 1, "", 3.0, most_first=0.5)
    found = {"runs": [[run(10, 8), run(20, 8)], [run(40, 2), run(50, 4)]]}
    (speed, first), bars = compare.compared("llama_cpp", load, found)
    assert speed == Comparison(
        "1 client (load generator: 5% of a core)",
        "tokens/s",
        {"llama_cpp": Series((10, 20)), "penstock": Series((40, 50))},
    )
    assert first["penstock"] == Series((2.0, 4.0))
    assert bars == [
        Bar("1 client: output tokens/s", 3.25, 3.0, at_least=True),
        Bar("1 client: time to first token", 0.375, 0.5),
    ]


def test_every_peer_has_an_environment_a_program_and_a_place():
    done = subprocess.run([PEERS / "install.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    environments = set(done.stderr.split(" are ")[1].split())
    assert {one.environment for one in compare.PEERS.values()} - {None} == environments
    page = compare.PAGE.read_text()
    for name, peer in compare.PEERS.items():
        assert page.count(f"<!-- {name} -->\n") == page.count(f"<!-- /{name} -->\n") == 1
        for case in peer.cases:
            if isinstance(case, compare.Program):
                program = next(word for word in case.command.split() if word.endswith(".py"))
                assert (PEERS.parent / program).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "promises"), [("aiohttp", 2), pytest.param("openvino", 5, marks=pytest.mark.nightly)]
)
def test_a_dry_run(peer, promises):
    before = compare.PAGE.read_text()
    argv = [sys.executable, PEERS / "compare.py", peer, "--dry", "--model", "demo"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| met |") + done.stdout.count("| MISSED |") == promises
    assert compare.PAGE.read_text() == before
