"""What `sampling_params` of a row say."""

import pytest

from penstock.batch.stages.tasks import sampling_of
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
