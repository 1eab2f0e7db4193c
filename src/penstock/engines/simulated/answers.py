"""What the simulated engine answers, drawn from the prompt and a seed.

Texts are words, or JSON that satisfies a schema.
"""

from __future__ import annotations

import json
import math
import random
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.tokens import tokenized
from penstock.engines.decisions.trie import Shares, shares
from penstock.engines.sampling import check_id_range
from penstock.engines.token_engine import GenerateRequest
from penstock.errors import context_overflow
from penstock.types import (
    ChatRequest,
    DecideRequest,
    EmbeddingRequest,
    Embeddings,
    RerankRequest,
    Sampling,
    Scores,
    SparseVector,
    TokenLogprob,
    Usage,
)

_WORDS = (
    *("water", "gate", "turbine", "flow", "head", "valve", "sluice", "river", "basin", "pressure"),
    *("rotor", "lake", "pipe", "stream", "wheel", "dam", "level", "pump", "surge", "intake"),
)


_EMBEDDING_WIDTH = 16


def seeded(seed: int, purpose: str, *parts: Any) -> random.Random:
    """A generator that depends on its arguments alone, whatever process asks."""
    digest = blake2b(msgspec.msgpack.encode((seed, purpose, parts)), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def answer_bytes(request: GenerateRequest, prompt: list[int], seed: int, size: int) -> bytes:
    """The full answer, one byte a token: JSON if asked for, else the adapter's name and words."""
    sampling = request.sampling
    own_seed = sampling.seed if sampling.temperature > 0 else None
    draw = (
        seeded(seed, "answer", prompt, request.adapter, own_seed)
        if sampling.is_deterministic
        else random.Random()
    )
    if sampling.structured is not None:
        by_schema = sampling.structured.kind == "json_schema"
        schema = (json.loads(sampling.structured.spec) if by_schema else None) or {"type": "object"}
        answer = json.dumps(instance(schema, draw), ensure_ascii=False)
        if sampling.structured.after and not sampling.structured.openers:
            answer = f"{draw.choice(_WORDS)}{sampling.structured.after[0]}{answer}"
        return answer.encode()
    text = f"{request.adapter}: " if request.adapter else ""
    while len(text) < size:
        text += draw.choice(_WORDS) + " "
    return text[:size].encode()


def text_of_each(answer: bytes) -> Sequence[str]:
    """The text that each token adds: a character comes with its last byte."""
    if answer.isascii():
        return answer.decode()
    decoder = getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(answer[at : at + 1]) for at in range(len(answer))]
    texts[-1] += decoder.decode(b"", final=True)
    return texts


def logprob(token: int, top: int) -> TokenLogprob:
    """The log probability of a token, and those of the `top` most likely tokens."""
    text = bytes([token]).decode(errors="replace")
    others = tuple((chr(97 + k), -2.0 - k) for k in range(max(top - 1, 0)))
    return TokenLogprob(text, -0.1, ((text, -0.1), *others) if top else ())


def prompt_logprobs(prompt: list[int], sampling: Sampling) -> tuple[TokenLogprob, ...] | None:
    """The log probabilities of a prompt's tokens; None if the request does not ask for them."""
    top = sampling.prompt_logprobs
    if top is None:
        return None
    first = msgspec.structs.replace(logprob(prompt[0], 0), logprob=None)
    return (first, *(logprob(token, top) for token in prompt[1:]))


def embeddings(request: EmbeddingRequest, seed: int, context: int) -> Embeddings:
    """A vector for each input, drawn from its bytes, which are its tokens, and the seed."""
    width = request.dimensions or _EMBEDDING_WIDTH
    given = [one for one in request.inputs if not isinstance(one, ChatRequest)]
    for one in given:
        if not isinstance(one, str):
            check_id_range(one, 256, "input")
    before = f"{request.input_type}: " if request.input_type is not None else ""
    inputs = [(before + one).encode() if isinstance(one, str) else bytes(one) for one in given]
    for index, size in enumerate(map(len, inputs)):
        if size > context and not request.truncate:
            raise context_overflow(context, size, what=f"input[{index}]", param="input")

    def vector(text: bytes) -> list[float]:
        draw = seeded(seed, "embed", text.decode(errors="replace"))
        return [draw.gauss(0, 1) for _ in range(width)]

    inputs = [one[:context] for one in inputs]
    usage = Usage(sum(map(len, inputs)))
    if request.vectors == "multi":
        multi = [[vector(one[at : at + 1]) for at in range(len(one))] for one in inputs]
        return Embeddings([], usage, multi=multi)
    if request.vectors == "sparse":
        counts = [sorted(Counter(one).items()) for one in inputs]
        sparse = [SparseVector([at for at, _ in one], [float(n) for _, n in one]) for one in counts]
        return Embeddings([], usage, sparse=sparse)
    return Embeddings([vector(one) for one in inputs], usage)


def scores(request: RerankRequest) -> Scores:
    """The share of the query's words that a document has."""
    asked = set(request.query.lower().split())
    shares = [len(asked & set(d.lower().split())) / (len(asked) or 1) for d in request.documents]
    return Scores(shares, Usage(sum(len(document.encode()) for document in request.documents)))


def label_shares(
    texts: RequestTexts, request: DecideRequest, seed: int
) -> tuple[list[Shares], Usage]:
    """Probabilities drawn from the text before each place. A token's is as large as that of one in
    all bytes, in the mean.
    """

    def encode(each: list[str], _: bool) -> list[list[int]]:
        return [list(text.encode()) for text in each]

    read = tokenized(texts, request.questions, encode)
    found = []
    for branch in read.branches:
        before = (read.ids, branch.stem, request.adapter)
        logprobs = {
            place: [
                math.log((1 - seeded(seed, "decide", before, place, token).random()) / 128)
                for token in tokens
            ]
            for place, tokens in branch.trie.parting.items()
        }
        found.append(shares(branch.trie, logprobs))
    return found, Usage(read.size)


def instance(schema: dict[str, Any], draw: random.Random) -> Any:
    """A value that satisfies the usual keywords of a JSON Schema."""
    return _instance(schema, draw, schema)


def _resolve(ref: str, root: dict[str, Any]) -> dict[str, Any]:
    """The part of the schema that a reference, such as "#/$defs/item", points to."""
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
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return _instance(choices[0], draw, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            parts = schema.get("properties", {}).items()
            return {name: _instance(part, draw, root) for name, part in parts}
        case "array":
            item, size = schema.get("items", {}), schema.get("minItems", 1)
            return [_instance(item, draw, root) for _ in range(size)]
        case "integer" | "number":
            return draw.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", 9)))
        case "boolean":
            return draw.random() < 0.5
        case "null":
            return None
    text = draw.choice(_WORDS)
    return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", len(text) + 99)]
