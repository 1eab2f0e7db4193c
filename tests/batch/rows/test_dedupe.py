from hashlib import blake2b

import pytest

from penstock.batch.rows.dedupe import AnswerCache
from penstock.batch.rows.row import Outcome
from penstock.types import Usage


@pytest.fixture
def opened():
    """Makes stores of answers, closed in the end."""
    made = []

    def make(*args, **kwargs):
        made.append(AnswerCache(*args, **kwargs))
        return made[-1]

    yield make
    for answers in made:
        answers.close()


def digest(number):
    return blake2b(str(number).encode(), digest_size=16).digest()


def answer(number):
    return Outcome(f"answer {number}", None, "stop", Usage(1, 2, 0), 1, 0.5, {"field": number})


def test_small_jobs_make_no_file(opened, tmp_path):
    answers = opened(tmp_path)
    answers.put(digest(1), answer(1))
    assert answers.get(digest(1)) == answer(1)
    assert answers.get(digest(2)) is None
    assert list(tmp_path.iterdir()) == []


def test_answers_are_found_after_they_left_memory(opened, tmp_path):
    answers = opened(tmp_path, in_memory=10)
    for number in range(100):
        answers.put(digest(number), answer(number))
    assert len(answers._recent) <= 10
    assert [answers.get(digest(number)) for number in range(100)] == [
        answer(number) for number in range(100)
    ]
    assert answers.get(digest(100)) is None


def test_spilled_answers_outlive_the_process_even_with_a_torn_end(opened, tmp_path):
    answers = opened(tmp_path, in_memory=2)
    for number in range(20):
        answers.put(digest(number), answer(number))
    file = tmp_path / "answers.bin"
    whole = file.stat().st_size
    with open(file, "ab") as spill:
        spill.write(digest(99) + b"\xff\x00")
    again = opened(tmp_path, in_memory=2)
    found = [number for number in range(100) if again.get(digest(number)) == answer(number)]
    assert found == list(range(len(found)))
    assert len(found) >= 18
    assert file.stat().st_size == whole


def test_a_key_that_two_digests_share_gives_no_wrong_answer(opened, tmp_path):
    answers = opened(tmp_path, in_memory=1)
    first, second = b"samekey!" + b"a" * 8, b"samekey!" + b"b" * 8
    answers.put(first, answer(1))
    for number in range(5):
        answers.put(digest(number), answer(number))
    assert answers.get(first) == answer(1)
    assert answers.get(second) is None


@pytest.mark.parametrize("length", [10, 100])
def test_long_answers_leave_memory_sooner(opened, tmp_path, monkeypatch, length):
    monkeypatch.setattr("penstock.batch.rows.dedupe._IN_MEMORY_BYTES", 500)
    answers = opened(tmp_path)
    for number in range(20):
        answers.put(digest(number), Outcome("x" * length))
    assert (tmp_path / "answers.bin").exists() == (length == 100)
    assert all(answers.get(digest(number)) == Outcome("x" * length) for number in range(20))


def test_what_an_answer_holds_counts_as_its_text_does(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.batch.rows.dedupe._IN_MEMORY_BYTES", 500)
    answers = opened(tmp_path)
    answers.put(digest(1), Outcome(parsed={"embeddings": [0.5] * 100}))
    assert (tmp_path / "answers.bin").exists()
    assert answers.get(digest(1)) == Outcome(parsed={"embeddings": [0.5] * 100})


def test_an_answer_belongs_to_whoever_gets_it(opened, tmp_path):
    answers = opened(tmp_path)
    answers.put(digest(1), answer(1))
    answers.get(digest(1)).parsed["field"] = "spoilt"
    assert answers.get(digest(1)) == answer(1)


def test_values_that_cannot_be_kept_are_not_remembered(opened, tmp_path):
    answers = opened(tmp_path)
    for value in (object(), 2**70, "\ud800"):
        answers.put(digest(1), Outcome(parsed={"a": value}))
    assert answers.get(digest(1)) is None
