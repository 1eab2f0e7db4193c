"""Decisions over HTTP: OpenAI's client unchanged, the System One API, classes of given labels."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from penstock.errors import UnsupportedError
from penstock.serve.api.endpoints.texts import each

PREDICATE = {"type": "predicate", "instructions": "It is a complaint.", "name": "complaint"}
CHOICE = {
    "type": "choice",
    "instructions": [{"type": "input_text", "text": "Topic?"}, {"type": "input_json", "data": {}}],
    "choices": [{"value": "billing", "description": "money"}, {"value": True}],
}
SCORE = {
    "type": "score",
    "instructions": "Urgent?",
    "levels": [{"label": "low"}, {"label": "high"}],
}
INPUT = [
    {"role": "developer", "content": "Be strict."},
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "Broken"}, {"type": "input_json", "data": [{}]}],
    },
    {"type": "custom_tool_call", "call_id": "c", "name": "look", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c", "output": "nothing"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
]


async def decide(client: Any, **fields: Any) -> Any:
    return await client.post("/v1/decisions", json={"model": "sim", "input": "text", **fields})


def test_openais_client_runs_unchanged(url: str) -> None:
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    if not hasattr(client, "decisions"):
        pytest.skip("this version of the client has no decisions")
    found = client.decisions.create(
        model="sim",
        input=INPUT,
        questions=[PREDICATE, CHOICE, SCORE],
        prompt_cache_key="k",
        safety_identifier="s",
    )
    predicate, choice, score = found.answers
    assert predicate.name == "complaint"
    assert 0 <= predicate.probability <= 1
    assert [one.value for one in choice.probabilities] == ["billing", True]
    assert choice.confidence == max(one.probability for one in choice.probabilities)
    assert sum(one.probability for one in choice.probabilities) == pytest.approx(1, abs=1e-6)
    assert [(one.value, one.label) for one in score.probabilities] == [(0, "low"), (1, "high")]
    assert score.score == pytest.approx(score.probabilities[1].probability)
    assert found.usage.total_tokens == found.usage.input_tokens > 0


@pytest.mark.parametrize(
    ("questions", "param", "why"),
    [
        ([], "questions", "1 to 400"),
        ([{"type": "predicate", "instructions": "x"}] * 401, "questions", "401"),
        ([{**CHOICE, "choices": []}], "questions[0]", "no options"),
        ([PREDICATE, {**CHOICE, "choices": [{"value": "a"}] * 2}], "questions[1]", "twice"),
        ([{**CHOICE, "choices": [{"value": ""}, {"value": "a"}]}], "questions[0]", "empty label"),
        ([{"type": "choice", "instructions": "x"}], "questions[0].choices", "needs choices"),
        ([{**PREDICATE, "levels": []}], "questions[0].levels", "has no levels"),
        ([{**CHOICE, "instructions": "", "several": True}], "questions[0]", "no instructions"),
        (
            [{**SCORE, "levels": [{"label": "a", "value": 10**400}, {"label": "b"}]}],
            "questions[0].levels[0].value",
            "is too large a number",
        ),
        ([{**SCORE, "several": True}], "questions[0].several", "only a choice"),
        ([{**PREDICATE, "type": "box"}], "questions[0].type", "must be"),
        (
            [{**PREDICATE, "instructions": [{"type": "input_image", "image_url": "x"}]}],
            "questions[0].instructions[0]",
            "texts and JSON",
        ),
        (
            [{**PREDICATE, "instructions": [{"type": "input_json", "json": {}}]}],
            "questions[0].instructions[0]",
            "needs its 'data'",
        ),
    ],
)
async def test_a_bad_question_is_a_400_that_names_it(
    client: Any, questions: Any, param: str, why: str
) -> None:
    answer = await decide(client, questions=questions)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert why in error["message"]


@pytest.mark.parametrize("data", [None, "x", 5])
async def test_json_in_the_input_is_an_object_or_a_list(client: Any, data: Any) -> None:
    message = {"role": "user", "content": [{"type": "input_json", "data": data}]}
    answer = await decide(client, questions=[PREDICATE], input=[message])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[0].content[0]"


async def test_a_choice_of_several_has_a_list(client: Any) -> None:
    choices = [{"value": "a"}, {"value": "b"}, {"value": "c"}]
    answer = await decide(client, questions=[{**CHOICE, "choices": choices, "several": True}])
    (found,) = answer.json()["answers"]
    likely = [one["value"] for one in found["probabilities"] if one["probability"] >= 0.5]
    assert found["choice"] == likely


async def test_an_adapter_is_refused_by_name(client: Any) -> None:
    answer = await decide(client, model="sim:german", questions=[PREDICATE])
    assert answer.status_code == 400
    assert "bare model" in answer.json()["error"]["message"]


async def test_decisions_are_counted(client: Any) -> None:
    await decide(client, questions=[PREDICATE])
    metrics = (await client.get("/metrics")).text
    assert 'endpoint="/v1/decisions",model_name="sim",status="200"} 1.0' in metrics


async def test_the_system_one_api_asks_the_same(client: Any) -> None:
    questions = {
        "complaint": {
            "type": "noul",
            "instructions": "A complaint?",
            "criteria": {"true": "angry"},
        },
        "topic": {"type": "choice", "instructions": {"q": "?"}, "criteria": {"a": "x", "b": None}},
        "urgency": {"type": "score", "instructions": "Urgent?", "criteria": ["low", "high"]},
    }
    answer = await client.post(
        "/v1/systemone", json={"model": "sim", "state": {"ticket": "x"}, "questions": questions}
    )
    found = answer.json()["answers"]
    assert 0 <= found["complaint"]["noul"] <= 1
    assert found["topic"]["choice"] in ("a", "b")
    assert sum(found["topic"]["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert found["urgency"]["legend"] == {"0": "low", "1": "high"}
    assert found["urgency"]["score"] == pytest.approx(found["urgency"]["probabilities"]["1"])


async def test_a_language_model_classifies_by_given_labels(client: Any) -> None:
    body = {"model": "sim", "input": ["x", "y"], "labels": ["good", "bad"]}
    for path in ("/classify", "/invocations"):
        found = (await client.post(path, json=body)).json()["data"]
        assert [one["num_classes"] for one in found] == [2, 2]
        for one in found:
            assert one["label"] == ["good", "bad"][one["probs"].index(max(one["probs"]))]
            assert sum(one["probs"]) == pytest.approx(1, abs=1e-6)


async def test_a_model_without_classes_is_told_of_labels(ingress: Any, client: Any) -> None:
    async def classify(_request: Any) -> Any:
        raise UnsupportedError("the engine has no classes")

    ingress.handles["sim"].classify = classify
    answer = await client.post("/classify", json={"model": "sim", "input": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "labels"
    assert "has no classes. A model that generates" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"type": "noul", "criteria": ["x"]}, "must be an object with true and false"),
        ({"type": "noul", "criteria": {"yes": "x"}}, "must be an object with true and false"),
        ({"type": "choice", "criteria": ["x", "y", "x"]}, "('q') has the option 'x' twice"),
        ({"type": "choice"}, "('q') has no options"),
        ({"type": "score", "criteria": {"a": "b"}}, "must be a list of levels"),
    ],
)
async def test_bad_questions_of_system_one(client: Any, question: Any, why: str) -> None:
    questions = {"q": {"instructions": "?", **question}}
    body = {"model": "sim", "state": "x", "questions": questions}
    answer = await client.post("/v1/systemone", json=body)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", ""]])
async def test_bad_labels_are_refused_by_their_name(client: Any, labels: list[str]) -> None:
    body = {"model": "sim", "input": ["x", "y"], "labels": labels}
    answer = await client.post("/classify", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "labels"
    assert error["message"].startswith("labels ha")


async def test_a_long_list_of_texts_asks_only_some_at_a_time() -> None:
    asked, go_on = 0, asyncio.Event()

    async def ask(number: int) -> int:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return number

    answers = asyncio.ensure_future(each(ask, range(1000)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert asked == 64
    assert len(asyncio.all_tasks()) < 100
    go_on.set()
    assert await answers == list(range(1000))


async def test_where_one_request_of_many_fails_the_others_end() -> None:
    running: set[int] = set()

    async def ask(number: int) -> None:
        if number == 1:
            raise ValueError("one")
        running.add(number)
        try:
            await asyncio.Event().wait()
        finally:
            running.remove(number)

    with pytest.raises(ValueError, match="one"):
        await each(ask, range(100))
    await asyncio.sleep(0)
    assert not running
