"""Decisions of the embedded engine, held against log probabilities read token by token."""

import math

import numpy as np
import pytest
from openvino_genai import Tokenizer as GenAITokenizer

from penstock.demo import model_path
from penstock.engines.decisions.prompts import asked
from penstock.engines.decisions.tokens import tokenized
from penstock.engines.decisions.trie import Shares, shares
from penstock.engines.openvino.logits.deciding import Deciding
from penstock.engines.openvino.logits.model import LogitModel
from penstock.engines.openvino.logits.scoring import Logits
from penstock.engines.openvino.logits.trees import groups, whole
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.engines.openvino.pipeline import Tokenizer
from penstock.engines.process import Call, Failed, Reply
from penstock.types import ChoiceQuestion, DecideRequest, Option, PredicateQuestion

OPTIONS = tuple(map(Option, ("billing", "bill", "shipping", "a technical problem")))
QUESTIONS = (
    ChoiceQuestion("Topic?", OPTIONS),
    PredicateQuestion("Is it urgent?"),
    PredicateQuestion("Is it urgent at all?"),
    ChoiceQuestion("", OPTIONS),
)
TEXT = "The Solara 77 arrived broken. "


@pytest.fixture(scope="module")
def model():
    return LogitModel(str(model_path("openvino") / "openvino_model.xml"), OpenVINOOptions())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(GenAITokenizer(str(model_path("openvino"))))


class Loaded(Logits):
    """Stands in for `Logits`: the model is there."""

    def __init__(self, model):
        super().__init__("", OpenVINOOptions())
        self.it = model
        self.rested = 0

    def model(self):
        return self.it

    def rest(self):
        self.rested += 1


def render(messages, continued):
    return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)


def directly(model, read):
    """The shares of a request, each place read by itself from the first token on."""
    found = []
    for branch in read.branches:
        logprobs = {}
        for place, tokens in branch.trie.parting.items():
            reading = model.begin()
            ids = [*read.ids, *branch.stem, *place]
            for start in range(0, len(ids), model.chunk):
                reading.add(ids[start : start + model.chunk], silent=True)
            wide = reading.after.astype(np.float64)
            wide -= wide.max()
            wide -= np.log(np.exp(wide).sum())
            logprobs[place] = [wide[token] for token in tokens]
        found.append(shares(branch.trie, logprobs))
    return found


def run(deciding, *requests):
    """The answers to requests that arrive together, by their numbers, and the turns it took."""
    for number, request in enumerate(requests):
        texts = asked(request, render)
        deciding.begin(Call(number, "decide", [texts, request.questions]))
    answers: dict[int, Reply | Failed] = {}
    turns = 0
    while deciding.busy:
        turns += 1
        answers |= {one.id: one for one in deciding.turn()}
    return answers, turns


def check(reply, expected, tolerance=1e-4):
    assert isinstance(reply, Reply)
    found, _ = reply.value
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Shares)
        assert one.probabilities == pytest.approx(other.probabilities, abs=tolerance)
        assert one.mass == pytest.approx(other.mass, rel=10 * tolerance)
        assert sum(one.probabilities) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("times", [1, 40])
def test_what_is_read_together_is_as_if_read_alone(model, tokenizer, monkeypatch, trees, times):
    """A small input is one tree; a long one is read first, and its branches in groups."""
    request = DecideRequest(TEXT * times, QUESTIONS)
    read = tokenized(asked(request, render), QUESTIONS, tokenizer.encode)
    expected = directly(model, read)
    assert (read.size > model.chunk) is (times > 1)
    monkeypatch.setattr(model, "takes_trees", trees)
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=False)
    answers, _ = run(deciding, request)
    check(answers[0], expected)


@pytest.mark.parametrize("times", [1, 40])
def test_the_devices_precision_changes_little(model, tokenizer, times):
    request = DecideRequest(TEXT * times, QUESTIONS)
    expected = directly(model, tokenized(asked(request, render), QUESTIONS, tokenizer.encode))
    path = str(model_path("openvino") / "openvino_model.xml")
    coarse = LogitModel(path, OpenVINOOptions(), exact=False, grows=False)
    answers, _ = run(Deciding(Loaded(coarse), tokenizer, 4096, alone=False), request)
    for found, one in zip(answers[0].value[0], expected, strict=True):
        assert found.probabilities == pytest.approx(one.probabilities, abs=0.05)


def test_small_requests_share_a_turn_unless_alone(model, tokenizer):
    requests = [DecideRequest(f"{TEXT}{number}", QUESTIONS[:1]) for number in range(3)]
    each = [
        directly(model, tokenized(asked(one, render), one.questions, tokenizer.encode))
        for one in requests
    ]
    loaded = Loaded(model)
    answers, turns = run(Deciding(loaded, tokenizer, 4096, alone=False), *requests)
    assert (turns, loaded.rested) == (1, 1)
    for number, expected in enumerate(each):
        check(answers[number], expected)
    answers, turns = run(Deciding(loaded, tokenizer, 4096, alone=True), *requests)
    assert turns == 3


def test_a_small_request_does_not_wait_for_a_large_one(model, tokenizer):
    large, small = DecideRequest(TEXT * 40, QUESTIONS), DecideRequest(TEXT, QUESTIONS[:1])
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=False)
    for number, request in enumerate((large, small, large, small)):
        deciding.begin(Call(number, "decide", [asked(request, render), request.questions]))
    order = []
    while deciding.busy:
        order.append([one.id for one in deciding.turn()])
    assert order[0] == [1, 3]
    assert [one for turn in order[1:] for one in turn] == [0, 2]


def test_small_requests_do_not_keep_a_large_one_waiting(model, tokenizer):
    large, small = DecideRequest(TEXT * 40, QUESTIONS), DecideRequest(TEXT, QUESTIONS[:1])
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=True)
    deciding.begin(Call(0, "decide", [asked(large, render), large.questions]))
    answered: list[int] = []
    for number in range(1, 100):
        deciding.begin(Call(number, "decide", [asked(small, render), small.questions]))
        answered += [one.id for one in deciding.turn()]
        if 0 in answered:
            break
    assert 0 in answered
    assert len(answered) > 3


def test_a_stem_that_is_longer_than_a_chunk_is_read_once(model, tokenizer):
    options = tuple(Option(f"o{number}") for number in range(30))
    request = DecideRequest(TEXT, (ChoiceQuestion("Which? " * 60, options),))
    read = tokenized(asked(request, render), request.questions, tokenizer.encode)
    assert len(read.branches[0].stem) > model.chunk
    (group,) = groups(read, model.chunk, model.asked)
    assert group.lead == read.branches[0].stem
    assert sum(map(len, group.wants.values())) == len(read.branches[0].trie.parting) > 1
    answers, _ = run(Deciding(Loaded(model), tokenizer, 4096, alone=False), request)
    check(answers[0], directly(model, read))


def test_branches_that_begin_alike_share_tokens(tokenizer):
    request = DecideRequest(TEXT, QUESTIONS)
    read = tokenized(asked(request, render), QUESTIONS, tokenizer.encode)
    tree = whole(read)
    assert len(tree) < read.size
    assert all(parent < place for place, parent in enumerate(tree.parents))
    for group in groups(read, 64, 3):
        assert len(group) <= 64
        assert len(group.wants) <= 3


def test_a_request_with_long_texts_is_tokenized_in_steps(model, tokenizer, monkeypatch):
    monkeypatch.setattr("penstock.engines.decisions.tokens.STEP_CHARS", 200)
    options = tuple(Option(f"option {number}") for number in range(20))
    request = DecideRequest(TEXT, (ChoiceQuestion("Which?", options),))
    small = DecideRequest(TEXT, QUESTIONS[3:])
    expected = directly(
        model, tokenized(asked(request, render), request.questions, tokenizer.encode)
    )
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=False)
    answers, _ = run(deciding, request, small)
    assert list(answers) == [1, 0]
    check(answers[0], expected)


@pytest.mark.parametrize("exact", [True, False])
def test_an_answer_does_not_depend_on_what_is_read_beside_it(tokenizer, exact):
    path = str(model_path("openvino") / "openvino_model.xml")
    loaded = Loaded(LogitModel(path, OpenVINOOptions(), exact, grows=False))
    requests = [DecideRequest(TEXT + "again " * number, QUESTIONS[3:]) for number in range(12)]
    together, turns = run(Deciding(loaded, tokenizer, 4096, alone=False), *requests)
    alone, more = run(Deciding(loaded, tokenizer, 4096, alone=True), *requests)
    assert turns < more
    for number in range(12):
        # In bf16 the size of a batch changes sums a little, on processors with AMX.
        check(together[number], alone[number].value[0], 1e-4 if exact else 0.01)


class Noting:
    """Notes what small requests were read behind, and how many at once."""

    def __init__(self, model, monkeypatch):
        self.read: list[tuple[int, int]] = []
        trees = model.trees

        def noted(them, behind):
            self.read.append((len(model._before) if behind else 0, len(them)))
            return trees(them, behind)

        monkeypatch.setattr(model, "trees", noted)


def test_what_all_begin_with_is_read_once(model, tokenizer, monkeypatch):
    system = {
        "role": "system",
        "content": "Sort the tickets of a shop by what they are about. " * 40,
    }
    requests = [
        DecideRequest([system, {"role": "user", "content": f"{number} {TEXT}"}], QUESTIONS[:2])
        for number in range(7)
    ]
    reads = [tokenized(asked(one, render), one.questions, tokenizer.encode) for one in requests]
    assert min(read.size for read in reads) > model.chunk
    noting = Noting(model, monkeypatch)
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=False)
    for number, most in ((0, 4), (6, 1)):  # six of them, then one
        answers, turns = run(deciding, *requests[number : number + 6])
        assert turns <= most  # a chunk each
        for place, found in answers.items():
            check(found, directly(model, reads[number + place]))
    (begun, count), (again, one) = noting.read
    assert begun == again > model.chunk
    assert (count, one) == (6, 1)
    others = [DecideRequest(f"{number} {TEXT}", QUESTIONS[:1]) for number in range(2)]
    answers, _ = run(deciding, *others, requests[0])
    for number, request in enumerate((*others, requests[0])):
        read = tokenized(asked(request, render), request.questions, tokenizer.encode)
        check(answers[number], directly(model, read))


def test_requests_that_come_one_by_one_share_what_they_begin_with(model, tokenizer, monkeypatch):
    noting = Noting(model, monkeypatch)
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=False)
    for number in range(3):
        request = DecideRequest(f"{TEXT * 3}{number}", QUESTIONS[:1])
        answers, _ = run(deciding, request)
        read = tokenized(asked(request, render), request.questions, tokenizer.encode)
        check(answers[0], directly(model, read))
    (none, _), (begun, _), (again, _) = noting.read
    assert none == 0 < begun == again < read.size


def test_no_more_places_are_asked_at_once_than_a_large_vocabulary_allows(
    model, tokenizer, monkeypatch
):
    requests = [DecideRequest(f"{TEXT}{number}", QUESTIONS[1:2]) for number in range(5)]
    requests.append(DecideRequest(TEXT, QUESTIONS))
    reads = [tokenized(asked(one, render), one.questions, tokenizer.encode) for one in requests]
    expected = [directly(model, read) for read in reads]
    monkeypatch.setattr(model, "asked", 3)
    noting = Noting(model, monkeypatch)
    answers, _ = run(Deciding(Loaded(model), tokenizer, 4096, alone=False), *requests)
    assert [count for _, count in noting.read] == [3, 2]
    for number, one in enumerate(expected):
        check(answers[number], one)


def test_a_request_that_is_given_up_is_not_answered(model, tokenizer):
    deciding = Deciding(Loaded(model), tokenizer, 4096, alone=True)
    for number in range(2):
        texts = asked(DecideRequest(TEXT, QUESTIONS), render)
        deciding.begin(Call(number, "decide", [texts, QUESTIONS]))
    deciding.abort(0)
    (reply,) = deciding.turn()
    assert reply.id == 1
    assert not deciding.busy


def test_what_does_not_fit_the_context_is_refused(model, tokenizer):
    deciding = Deciding(Loaded(model), tokenizer, 100, alone=False)
    texts = asked(DecideRequest(TEXT * 20, QUESTIONS), render)
    deciding.begin(Call(5, "decide", [texts, QUESTIONS]))
    (refused,) = deciding.turn()
    assert isinstance(refused, Failed)
    assert (refused.id, refused.kind) == (5, "context_length_exceeded")


def test_no_numbers_fail_their_request_alone(model, tokenizer, monkeypatch):
    def trees(asked, behind=False):
        found = LogitModel.trees(model, asked, behind)
        return [dict.fromkeys(found[0], [math.nan] * 4), *found[1:]]

    monkeypatch.setattr(model, "trees", trees)
    requests = [DecideRequest(f"{TEXT}{number}", QUESTIONS[:1]) for number in range(2)]
    answers, turns = run(Deciding(Loaded(model), tokenizer, 4096, alone=False), *requests)
    assert turns == 1
    assert isinstance(answers[0], Failed)
    assert isinstance(answers[1], Reply)


def test_a_model_that_cannot_be_read_fails_the_requests(tokenizer):
    class Broken(Loaded):
        def model(self):
            raise ValueError("no such graph")

    deciding = Deciding(Broken(None), tokenizer, 4096, alone=False)
    texts = asked(DecideRequest(TEXT, QUESTIONS), render)
    deciding.begin(Call(1, "decide", [texts, QUESTIONS]))
    (failed,) = deciding.turn()
    assert isinstance(failed, Failed)
    assert not deciding.busy
