"""Answers of models under schemas: no white space, no padding, and an end where the schema has
one.
"""

import asyncio
import json
import re

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from penstock.engines.openvino.constraints.json_grammar import json_grammar
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.errors import RequestError
from penstock.types import ChatRequest, Sampling, StructuredOutput

pytestmark = pytest.mark.slow
TEXT = {"type": "string", "maxLength": 30}
MOST_TOKENS = 1.05


def made_of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


SCHEMAS = [
    made_of(name=TEXT, age={"type": "integer"}),
    made_of(color={"enum": ["red", "green", "blue"]}, ok={"type": "boolean"}),
    made_of(price={"type": "number"}, currency={"enum": ["EUR", "USD"]}),
    made_of(tags={"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4}),
    made_of(person=made_of(first=TEXT, last=TEXT), active={"type": "boolean"}),
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    made_of(
        date={"type": "string", "format": "date"},
        count={"type": "integer", "minimum": 0, "maximum": 100},
    ),
    made_of(
        summary={"type": "string", "maxLength": 120},
        score={"type": "number", "minimum": 0, "maximum": 1},
    ),
    made_of(
        items={
            "type": "array",
            "items": made_of(sku={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}),
            "minItems": 1,
            "maxItems": 3,
        }
    ),
    made_of(
        a={"type": ["string", "null"], "maxLength": 20},
        b={"type": "array", "items": {"type": "number"}, "maxItems": 3},
        c={"type": "boolean"},
    ),
]


def spaces_outside_strings(text):
    return re.findall(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text))


async def answer(engine, schema, row):
    prompt = (
        f"Write JSON about customer number {row}, who bought apples for 3.50 in Berlin on"
        f" 2024-03-0{row}."
    )
    sampling = Sampling(
        max_tokens=400,
        temperature=0.0,
        structured=StructuredOutput("json_schema", json.dumps(schema)),
    )
    text, reason = "", None
    async for delta in engine.chat(ChatRequest([{"role": "user", "content": prompt}], sampling)):
        text, reason = text + delta.text, delta.finish_reason or reason
    assert reason == "stop", (schema, text)
    assert jsonschema_rs.validator_for(schema).is_valid(json.loads(text)), text
    return text


async def answers(engine):
    return await asyncio.gather(
        *(answer(engine, schema, row) for schema in SCHEMAS for row in range(1, 6))
    )


@pytest.mark.nightly
async def test_a_real_model_pads_nothing(smollm2):
    engine = OpenVINOEngine(smollm2)
    await engine.start()
    try:
        used = least = 0
        for text in await answers(engine):
            assert not spaces_outside_strings(text), text
            minified = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
            used += len(await engine.tokenize(text))
            least += len(await engine.tokenize(minified))
        assert used <= MOST_TOKENS * least
    finally:
        await engine.stop()


async def test_the_demo_model_comes_to_an_end():
    engine = OpenVINOEngine("demo")
    await engine.start()
    try:
        for text in await answers(engine):
            assert not spaces_outside_strings(text), text
    finally:
        await engine.stop()


NAMES = st.text(st.sampled_from('abcAB _"\\é'), min_size=1, max_size=4)
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-99, 999),
        st.integers(0, 5000),
    ),
    st.builds(
        lambda low, more: {"type": "number", "minimum": low, "exclusiveMaximum": low + more},
        st.floats(-50, 50).map(lambda x: round(x, 3)),
        st.integers(1, 2000).map(lambda n: n / 8),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 30),
        st.integers(0, 40),
    ),
    st.sampled_from(["^[a-c]{1,3}-[0-9]+$", "^(x|yy|[^a-z]{2}){1,4}$", r'^["\\\n]?\w{2,40}$']).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.lists(st.one_of(NAMES, st.integers(), st.booleans(), st.none()), min_size=1, max_size=5).map(
        lambda values: {"enum": [v for i, v in enumerate(values) if v not in values[:i]]}
    ),
    st.sampled_from(["date", "time", "uuid", "ipv6"]).map(
        lambda name: {"type": "string", "format": name}
    ),
)


def larger(parts):
    arrays = st.builds(
        lambda items, low, more: {
            "type": "array",
            "items": items,
            "minItems": low,
            "maxItems": low + more,
        },
        *(parts, st.integers(0, 2), st.integers(0, 3)),
    )
    objects = st.builds(
        lambda given, needed, others: {
            "type": "object",
            "properties": given,
            "required": [name for name, is_needed in zip(given, needed, strict=False) if is_needed],
            **(
                {}
                if others is None
                else {"additionalProperties": others, "maxProperties": len(given) + 2}
            ),
        },
        *(
            st.dictionaries(NAMES, parts, max_size=4),
            st.lists(st.booleans(), min_size=4, max_size=4),
        ),
        st.one_of(st.none(), st.just(False), parts),
    )
    unions = st.lists(parts, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(arrays, objects, unions)


@pytest.mark.nightly
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(st.recursive(SCALARS, larger, max_leaves=8))
def test_answers_under_random_schemas_fit_them(writer, schema):
    try:
        grammar = json_grammar(schema)
    except RequestError:
        assume(False)
    fits = jsonschema_rs.validator_for(schema, validate_formats=True)
    for text in writer.texts(grammar, count=5, tokens=400):
        assert fits.is_valid(json.loads(text)), text
        assert not spaces_outside_strings(text), text
