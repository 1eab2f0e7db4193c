"""Contract of engines that constrain answers: schemas, regular expressions, grammars, calls."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import jsonschema_rs
import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import (
    RequestError,
)
from penstock.testing.asking import (
    Asked,
    answer,
    chat_request,
)
from penstock.types import (
    Sampling,
    StructuredOutput,
)


class Constraints(Asked):
    """Tests of constraints, of the kinds that the engine declares."""

    schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["kind", "sure"],
        "additionalProperties": False,
    }
    """A JSON Schema that the model can follow."""

    async def test_json_schema_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "json_schema")
        # JSON may hold white space without end, and a model without a clue may choose that: so
        # several tries.
        constraint = StructuredOutput("json_schema", json.dumps(self.schema))
        sampling = Sampling(temperature=1.0, seed=3, max_tokens=200, structured=constraint)
        result = await answer(engine, chat_request(self.prompt, sampling, n=8))
        ended = [json.loads(result.texts[n]) for n in result.texts if result.reasons[n] == "stop"]
        assert ended
        for value in ended:
            assert jsonschema_rs.is_valid(dict(self.schema), value)

    async def test_required_calls_follow_the_definitions_of_their_own_tool(
        self, engine: LLMEngine
    ) -> None:
        _needs(engine, "json_schema")
        tools = [_tool("left", ["l", "e"]), _tool("right", ["r", "i"])]
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        limit = Sampling(temperature=0.0, max_tokens=100)
        for choice in ("required", {"type": "function", "function": {"name": "right"}}):
            asked = chat_request(self.prompt, limit, tools=tools, tool_choice=choice)
            found = await answer(engine, asked)
            (call, *_) = found.tool_calls[0]
            assert choice == "required" or call.name == "right"
            if found.reasons[0] != "length":  # it may be full of white space
                assert jsonschema_rs.is_valid(schemas[call.name], json.loads(call.arguments))

    async def test_regex_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "regex")
        sampling = Sampling(
            temperature=0.0, max_tokens=50, structured=StructuredOutput("regex", "[ab]{3}-[0-9]{2}")
        )
        result = await answer(engine, chat_request(self.prompt, sampling))
        assert re.fullmatch("[ab]{3}-[0-9]{2}", result.texts[0])

    async def test_a_grammar_is_obeyed(self, engine: LLMEngine) -> None:
        _needs(engine, "grammar")
        constraint = StructuredOutput("grammar", 'root ::= pair+ "."\npair ::= [a-c] "-"\n')
        sampling = Sampling(temperature=1.0, seed=3, max_tokens=200, structured=constraint)
        result = await answer(engine, chat_request(self.prompt, sampling, n=4))
        assert all(re.fullmatch(r"([a-c]-)+\.?", text) for text in result.texts.values())

    async def test_a_broken_constraint_is_refused_and_harms_nobody(self, engine: LLMEngine) -> None:
        _needs(engine, "json_schema")
        alone = await answer(engine, chat_request(self.prompt))
        kinds = engine.capabilities.structured
        broken = [
            StructuredOutput("json_schema", '{"type": "objet"}'),
            StructuredOutput("json_schema", "{"),
        ]
        if "regex" in kinds:
            broken += [StructuredOutput("regex", "[a"), StructuredOutput("regex", r"(a)\1")]
        if "grammar" in kinds:
            broken += [StructuredOutput("grammar", "root ::= missing")]
        neighbours = [
            asyncio.create_task(answer(engine, chat_request(self.prompt))) for _ in range(3)
        ]
        for constraint in broken:
            sampling = Sampling(max_tokens=9, structured=constraint)
            with pytest.raises(RequestError):
                await answer(engine, chat_request(self.prompt, sampling))
        for neighbour in await asyncio.gather(*neighbours):
            assert neighbour.texts == alone.texts
        assert (await answer(engine, chat_request(self.prompt))).texts == alone.texts


def _tool(name: str, words: list[str]) -> dict[str, Any]:
    """A tool whose definitions refer to each other, as clients make them of nested classes."""
    item = {"properties": {"word": {"$ref": "#/$defs/Word"}}, "required": ["word"]}
    parameters = {
        "properties": {"one": {"$ref": "#/$defs/Item"}},
        "required": ["one"],
        "$defs": {"Item": item, "Word": {"enum": words}},
    }
    function = {"name": name, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


def _needs(engine: LLMEngine, kind: str) -> None:
    if kind not in engine.capabilities.structured:
        pytest.skip(f"no {kind} constraint")
