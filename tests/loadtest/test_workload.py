import math
import time
from collections import Counter
from statistics import fmean, median

import pytest

from penstock.errors import ConfigError, InputError
from penstock.loadtest.workload import (
    SHAPES,
    Workload,
    body_of,
    calibration,
    read_trace,
    tokens_of_a_word,
)


def test_equal_seeds_make_equal_work_and_other_seeds_other_work():
    made = Workload("code", seed=3).prompts(20)
    assert made == Workload("code", seed=3).prompts(20)
    assert made != Workload("code", seed=4).prompts(20)
    assert made != Workload("code", seed=3).prompts(20, part="warm-up")


@pytest.mark.parametrize("name", ["conversation", "code", "gsm8k"])
def test_lengths_have_the_median_and_the_cap_of_their_distribution(name):
    shape = SHAPES[name]
    made = Workload(name).prompts(2_000)
    assert median(p.input_tokens for p in made) == pytest.approx(math.exp(shape.input.mu), rel=0.1)
    assert median(p.output_tokens for p in made) == pytest.approx(
        math.exp(shape.output.mu), rel=0.1
    )
    assert max(p.output_tokens for p in made) <= shape.output.cap


def test_given_lengths_and_caps_stand():
    fixed = Workload("code", input_tokens=10, output_tokens=7).prompts(5)
    assert {(p.input_tokens, p.output_tokens) for p in fixed} == {(10, 7)}
    assert {len(p.text.split()) for p in fixed} == {10}
    capped = Workload("code", max_input=50, max_output=3).prompts(50)
    assert max(p.input_tokens for p in capped) == 50
    assert max(p.output_tokens for p in capped) == 3


def test_the_tokens_of_a_word_are_those_of_the_mean_word():
    few, many = (sum(map(len, one.text.split())) for one in calibration())  # a token a letter
    drawn = " ".join(one.text for one in Workload("gsm8k", input_tokens=50).prompts(1_000)).split()
    assert tokens_of_a_word(few, many) == pytest.approx(fmean(map(len, drawn)), rel=0.01)


def test_a_word_may_be_several_tokens():
    (one,) = Workload(input_tokens=100, tokens_per_word=2.0).prompts(1)
    assert len(one.text.split()) == 50


def test_prefixes_are_shared_and_rests_are_not():
    made = Workload("shared-prefix", prefixes=2).prompts(40)
    heads = Counter(" ".join(p.text.split()[:256]) for p in made)
    assert len(heads) == 2
    assert len({p.text for p in made}) == 40
    assert {p.input_tokens for p in made} == {512}
    (short,) = Workload("shared-prefix", max_input=300).prompts(1)
    assert short.input_tokens == len(short.text.split()) == 300
    warm = Workload("shared-prefix", prefixes=2).prompts(10, part="warm-up")
    assert {" ".join(p.text.split()[:256]) for p in warm} <= set(heads)


def test_duplicates_repeat_and_stragglers_are_few():
    texts = [p.text for p in Workload("duplicates").prompts(400)]
    assert len(set(texts)) == pytest.approx(200, rel=0.15)
    tokens = Counter(p.output_tokens for p in Workload("stragglers").prompts(2_000))
    assert set(tokens) == {64, 2048}
    assert tokens[2048] == pytest.approx(40, rel=0.4)


def test_wrong_workloads_are_refused():
    with pytest.raises(ConfigError, match="there are conversation, code"):
        Workload("chat")
    with pytest.raises(ConfigError, match="only the workload shared-prefix"):
        Workload("code", prefixes=3)
    with pytest.raises(ConfigError, match="max_input: a prefix alone has 256 tokens"):
        Workload("shared-prefix", max_input=256)
    with pytest.raises(ConfigError, match="input_tokens: a prefix alone has 256 tokens"):
        Workload("shared-prefix", input_tokens=64)


def test_bodies():
    (prompt,) = Workload("gsm8k").prompts(1)
    chat = body_of(prompt, "m", ignore_eos=True)
    assert chat["messages"] == [{"role": "user", "content": prompt.text}]
    assert chat["stream_options"] == {"include_usage": True}
    assert chat["ignore_eos"] is True
    plain = body_of(prompt, "m", chat=False, stream=False)
    assert plain == {
        "model": "m",
        "max_tokens": prompt.output_tokens,
        "temperature": 0,
        "prompt": prompt.text,
    }


def test_traces_in_both_forms(tmp_path):
    lines = tmp_path / "trace.jsonl"
    lines.write_text(
        '{"timestamp": 12, "input_tokens": 5, "output_tokens": 6}\n\n'
        '{"timestamp": 10, "input_tokens": 3, "output_tokens": 0}\n'
    )
    trace = read_trace(lines, speed=2)
    assert trace.times == [0, 1]
    assert trace.lengths == [(3, 1), (5, 6)]
    assert read_trace(lines, limit=1).lengths == [(3, 1)]
    azure = tmp_path / "trace.csv"
    azure.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.9799600,110,27\n"
    )
    trace = read_trace(azure)
    assert trace.times == pytest.approx([0, 1])
    assert trace.lengths == [(4808, 10), (110, 27)]
    prompts = Workload(max_input=200).prompts_of(trace.lengths)
    assert [(p.input_tokens, p.output_tokens) for p in prompts] == [(200, 10), (110, 27)]


@pytest.mark.parametrize("offset", ["", "+00:00"])
def test_times_of_a_trace_are_those_of_one_zone(tmp_path, monkeypatch, offset):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    monkeypatch.undo()
    path = tmp_path / "trace.csv"
    times = ("2024-03-31 00:59:59.009930", "2024-03-31 01:00:00", "2024-03-31 02:30:00.5000000")
    rows = "".join(f"{each}{offset},10,5\n" for each in times)
    path.write_text(f"\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")  # Excel's mark
    try:
        found = read_trace(path)
    finally:
        time.tzset()
    assert found.times == pytest.approx([0, 0.99007, 5401.49007])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("t.jsonl", "", "is empty"),
        ("t.jsonl", "{", "line 1: not valid JSON"),
        ("t.jsonl", "[]", "line 1: must be a JSON object"),
        ("t.jsonl", '{"timestamp": 1, "input_tokens": 1}', "output_tokens must be a number"),
        ("t.jsonl", '{"timestamp": -1, "input_tokens": 1, "output_tokens": 1}', "at least 0"),
        ("t.jsonl", '{"timestamp": 1, "input_tokens": 1e9, "output_tokens": 1}', "more than"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1", "line 2: TIMESTAMP must be"),
    ],
)
def test_wrong_traces_are_refused_with_their_line(name, text, why, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        read_trace(path)


def test_a_trace_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.jsonl")
