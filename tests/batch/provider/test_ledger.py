"""The ledger of a job's batches at a provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.batch.provider import ledger
from penstock.batch.provider.anthropic_batches import AnthropicBatchEngine
from penstock.batch.provider.ledger import Batch, Ledger
from penstock.errors import JobError, OutputError


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
    ledgers: list[Ledger] = []

    def make() -> Ledger:
        ledger = Ledger(tmp_path, key=7, generation=0)
        ledger.open()
        ledgers.append(ledger)
        return ledger

    yield make
    for each in ledgers:
        each.close()


def begun(ledger: Ledger, token: str) -> Batch:
    lines = [f"{token}-{number}" for number in range(2)]
    text = "".join(f'{{"custom_id": "{line}"}}\n' for line in lines)
    (ledger.folder / f"{token}.requests.jsonl").write_text(text)
    return ledger.begin(token, "/v1/chat/completions", 1.0, lines)


@pytest.mark.parametrize("owner", ["a", "other"])
def test_results_that_were_fetched_count_if_they_are_to_its_lines(
    opened: Callable[[], Ledger], owner: str
) -> None:
    # The process was killed before it saw whose results they are.
    begun(opened(), "a").results.write_text(f'{{"custom_id": "{owner}-0"}}\n')
    batch = opened().batches["a"]
    assert batch.answered == (owner == "a")
    assert batch.results.exists() == batch.answered


async def test_of_a_batch_whose_results_are_here_nothing_runs_on(
    opened: Callable[[], Ledger], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(opened(), "a").results.write_text('{"custom_id": "a-0"}\n')  # and killed, before a note
    engine = AnthropicBatchEngine("m", engine_kwargs={"base_url": "http://127.0.0.1:1/v1"})
    engine.keep(tmp_path, 7, 0)
    await engine.start()
    engine.let_go()
    await engine.stop()
    assert capsys.readouterr().err == ""


def test_after_a_record_that_failed_none_follows(
    opened: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    one, two = begun(first, "a"), begun(first, "b")

    def full(*_: object) -> None:
        raise OutputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_all", full)
        with pytest.raises(OutputError):
            first.note(one, "created", id="batch_1")
    with pytest.raises(OutputError):  # there is room again, and the file has a gap
        first.note(two, "created", id="batch_2")
    assert {batch.id for batch in opened().batches.values()} == {None}


def test_a_record_keeps_its_names_for_ledgers_that_exist(opened: Callable[[], Ledger]) -> None:
    ledger = opened()
    batch = begun(ledger, "a")
    ledger.note(batch, "ended", status="failed", result_paths=["/f"], line_errors={"a-0": "no"})
    text = (ledger.folder / "ledger.jsonl").read_text()
    for part in ('"event":"begun"', '"at":1.0', '"files":["/f"]', '"refused":{"a-0":"no"}'):
        assert part in text
    found = opened().batches["a"]
    assert (found.begun_at, found.result_paths, found.line_errors) == (1.0, ["/f"], {"a-0": "no"})


@pytest.mark.parametrize("line", [0, 1])
def test_a_damaged_record_is_told(opened: Callable[[], Ledger], tmp_path: Path, line: int) -> None:
    ledger = opened()
    ledger.note(begun(ledger, "a"), "created", id="batch_1")
    path = ledger.folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"token", b"tokem")
    path.write_bytes(b"".join(lines))
    with pytest.raises(JobError, match="is damaged, so batches might be paid for twice; --fresh"):
        Ledger(tmp_path, key=7, generation=0).open()
