"""Every field of the clients' SDKs and of vLLM's server has a verdict, and gets what it says."""

import json
from typing import Any

import parameters
import pytest

from penstock.errors import RequestError
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.table import HARMLESS, ONLY, REFUSED, of_form, verdict

TAKEN = json.loads(parameters.SNAPSHOT.read_text())
FORMS = {endpoint: parameters.form_of(endpoint) for endpoint in TAKEN["endpoints"]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/decisions": {
        "input": "a",
        "questions": [{"type": "predicate", "instructions": "a"}],
    },
    "/v1/audio/speech": {"input": "a"},
    "/v1/audio/transcriptions": {"file": b"a"},
    "/v1/audio/translations": {"file": b"a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/score": {"text_1": "a", "text_2": "b"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/classify": {"input": "a"},
    "/pooling": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
FIELDS = [
    (endpoint, field)
    for endpoint, fields in TAKEN["endpoints"].items()
    for field in sorted({*fields, *FORMS[endpoint].__struct_fields__})
]


def parsed(endpoint: str, **fields: Any) -> Any:
    return parse_body(FORMS[endpoint], {**BODIES[endpoint], **fields})


@pytest.mark.slow
def test_the_installed_sdks_have_no_field_that_is_not_known() -> None:
    for endpoint, field, source in parameters.of_sdks():
        known = TAKEN["endpoints"][endpoint]
        assert source in known.get(field, ()), f"tools/parameters.py --snapshot: {field} is new"


@pytest.mark.parametrize(("endpoint", "field"), FIELDS)
def test_each_field_has_a_verdict_and_null_is_accepted(endpoint: str, field: str) -> None:
    assert verdict(FORMS[endpoint], field)[0] in ("honoured", "harmless", "refused")
    if field not in BODIES[endpoint]:
        parsed(endpoint, **{field: None})


REFUSALS = [
    (endpoint, field, values)
    for endpoint, form in FORMS.items()
    for table in (REFUSED, ONLY)
    for field, values in of_form(table, form).items()
    if table is ONLY or field not in form.__struct_fields__
]


@pytest.mark.parametrize(("endpoint", "field", "values"), REFUSALS)
def test_a_refused_field_is_named_and_its_defaults_are_accepted(
    endpoint: str, field: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        parsed(endpoint, **{field: value})
    other: Any = 3 if isinstance(values[:1], tuple) and values[:1] == (0,) else "other"
    with pytest.raises(RequestError) as caught:
        parsed(endpoint, **{field: other})
    assert (caught.value.status, caught.value.param) == (400, field)


def test_a_value_is_no_default_of_another_type() -> None:
    with pytest.raises(RequestError, match="return_token_offsets is not supported but for false"):
        parsed("/v1/chat/completions", return_token_offsets=0)
    with pytest.raises(RequestError, match="return_mm_kwargs is not supported but for false"):
        parsed("/v1/completions", return_mm_kwargs=True)


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [(e, field) for e, form in FORMS.items() for field in of_form(HARMLESS, form)],
)
def test_a_harmless_field_is_accepted(endpoint: str, field: str) -> None:
    given: Any = "x"
    if field == "include":
        given = ["x"]
    elif field == "store":
        given = True
    elif field in ("metadata", "prediction", "prompt_cache_options", "cache_control"):
        given = {"a": "b"}
    parsed(endpoint, **{field: given})


def test_the_page_is_of_these_tables() -> None:
    assert parameters.PAGE.read_text(encoding="utf-8") == parameters.page(TAKEN), (
        "run tools/parameters.py"
    )


@pytest.mark.parametrize(
    ("endpoint", "given", "param"),
    [
        ("/v1/responses", {"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ("/v1/responses", {"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ("/v1/responses", {"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ("/v1/responses", {"text": {"fromat": {}}}, "text.fromat"),
        ("/v1/responses", {"stream_options": {"x": True}}, "stream_options.x"),
        ("/v1/messages", {"output_config": {"task_budget": {}}}, "output_config.task_budget"),
        ("/v1/messages", {"output_config": {"x": 1}}, "output_config.x"),
        ("/v1/messages", {"thinking": {"type": "adaptive", "x": 1}}, "thinking.x"),
    ],
)
def test_an_option_within_a_field_is_not_dropped(
    endpoint: str, given: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(endpoint, **given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_old_name_of_a_summary_shows_it() -> None:
    assert parsed("/v1/responses", reasoning={"generate_summary": "auto"}).wants_summary
    assert not parsed("/v1/responses", reasoning={"effort": "low", "mode": None}).wants_summary
