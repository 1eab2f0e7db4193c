"""What the simulated engine says: words, or JSON that satisfies a schema, drawn from the prompt and
a seed.
"""

from __future__ import annotations

import json
import random
from hashlib import blake2b
from typing import Any

import msgspec

from penstock.engines.token_engine import GenerateRequest

_WORDS = (
    *("water", "gate", "turbine", "flow", "head", "valve", "sluice", "river", "basin", "pressure"),
    *("rotor", "lake", "pipe", "stream", "wheel", "dam", "level", "pump", "surge", "intake"),
)


def seeded(seed: int, purpose: str, *parts: Any) -> random.Random:
    """A generator that depends on its arguments alone, whatever process asks."""
    digest = blake2b(msgspec.msgpack.encode((seed, purpose, parts)), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def answer_bytes(request: GenerateRequest, prompt: list[int], seed: int, size: int) -> bytes:
    """The full answer, one byte a token: `size` bytes of words after the adapter's name, or JSON if
    asked for.
    """
    sampling = request.sampling
    if sampling.temperature > 0 and sampling.seed is None:
        draw = random.Random()
    else:
        draw = seeded(
            seed,
            "answer",
            prompt,
            request.adapter,
            sampling.seed if sampling.temperature > 0 else None,
        )
    if sampling.structured is not None:
        schema = (
            json.loads(sampling.structured.spec)
            if sampling.structured.kind == "json_schema"
            else {}
        )
        return json.dumps(instance(schema or {"type": "object"}, draw), ensure_ascii=False).encode()
    text = f"{request.adapter}: " if request.adapter else ""
    while len(text) < size:
        text += draw.choice(_WORDS) + " "
    return text[:size].encode()


def instance(schema: dict[str, Any], draw: random.Random) -> Any:
    """A value that satisfies the common part of JSON Schema: types, enum, properties, items,
    lengths, local refs.
    """
    return _instance(schema, draw, schema)


def _resolve(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    """What a reference within the schema, such as "#/$defs/item", points to."""
    found: Any = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        found = found.get(part, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def _instance(schema: dict[str, Any], draw: random.Random, root: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), draw, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return draw.choice(schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            return _instance(schema[choice][0], draw, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {
            name: _instance(part, draw, root) for name, part in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [
            _instance(schema.get("items", {}), draw, root) for _ in range(schema.get("minItems", 1))
        ]
    if kind in ("integer", "number"):
        return draw.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", 9)))
    if kind == "boolean":
        return draw.random() < 0.5
    if kind == "null":
        return None
    text = draw.choice(_WORDS)
    return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", len(text) + 99)]
