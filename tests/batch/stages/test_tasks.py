"""What `sampling_params` and `pooling_params` of a row say."""

import numpy as np
import pytest

from penstock.batch.stages.tasks import request, sampling_of
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
        ({"json_schema": "{}", "regex": "a"}, "json_schema and regex"),
        ({"structured_outputs": {"regex": "a"}, "guided_decoding": {"regex": "a"}}, "guided_dec"),
        ({"structured_outputs": {"regex": "a"}, "json_schema": "{}"}, "json_schema"),
        ({"structured_outputs": {"whitespace_pattern": "a"}}, "whitespace_pattern"),
    ],
)
def test_an_answer_has_one_form(params, names):
    with pytest.raises(RequestError, match=names):
        sampling_of(params)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"structured_outputs": {"json": '{"type": "object"}', "regex": None}}, "json_schema"),
        ({"guided_decoding": {"choice": ["a", "b"]}}, "regex"),
        ({"structured_outputs": {"json_object": True}}, "json_object"),
        ({"structured_outputs": {"json_object": False, "grammar": 'root ::= "a"'}}, "grammar"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"regex": "a+"}, "regex"),
    ],
)
def test_its_form_stands_under_several_names(params, kind):
    structured = sampling_of(params)[0].structured
    assert structured is not None
    assert structured.kind == kind


def test_arrays_and_numbers_of_numpy_are_what_they_hold():
    given = {
        "max_tokens": np.int64(4),
        "temperature": np.float32(0.5),
        "stop": np.array(["a", "b"]),
        "stop_token_ids": [np.int64(3)],
        "logit_bias": {65: np.float64(2.0)},
        "structured_outputs": {"choice": np.array(["x", "y"])},
    }
    same = {
        "max_tokens": 4,
        "temperature": 0.5,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "logit_bias": {"65": 2.0},
        "structured_outputs": {"choice": ["x", "y"]},
    }
    assert sampling_of(given) == sampling_of(same)
    assert sampling_of({"max_tokens": np.int64(4)}) == sampling_of({"max_tokens": 4})


def test_a_value_that_is_none_of_these_names_its_place():
    holds_itself: dict = {}
    holds_itself["json"] = holds_itself
    with pytest.raises(RequestError, match="sampling_params: "):
        sampling_of({"structured_outputs": holds_itself})
    with pytest.raises(RequestError, match="logit_bias maps token ids"):
        sampling_of({"logit_bias": {"a": 1.0}})


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("embed", lambda made: len(made) == 2),
        ("token_embed", lambda made: [len(vector) for vector in made] == [2, 2, 2]),
    ],
)
async def test_the_task_says_which_vectors_are_made(task, shape):
    engine = SimulatedEngine()
    await engine.start()
    row = {"prompt": "abb", "pooling_params": {"task": task, "dimensions": 2}}
    assert shape((await request("embed", row)(engine))["embeddings"])
    sparse = {"prompt": "abb", "pooling_params": {"task": "sparse_embed"}}
    made = await request("embed", sparse)(engine)
    assert made["embeddings"] == {"indices": [97, 98], "values": [1.0, 2.0]}
    await engine.stop()


@pytest.mark.parametrize("task", ["classify", 1, [1]])
def test_another_task_is_refused(task):
    with pytest.raises(RequestError, match="embed, token_embed, sparse_embed") as caught:
        request("embed", {"prompt": "a", "pooling_params": {"task": task}})
    assert caught.value.param == "pooling_params.task"
