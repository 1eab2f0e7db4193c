"""A seed for requests that sample and give none, made from what they ask."""

from __future__ import annotations

from hashlib import blake2b
from typing import TypeVar

import msgspec

from penstock.types import ChatRequest, CompletionRequest

Request = TypeVar("Request", ChatRequest, CompletionRequest)


def with_seed(request: Request) -> Request:
    """The request with a seed, so that asked again it is answered the same.

    The seed depends on the messages or the prompt and on the adapter: equal requests get equal
    answers, and other limits or log probabilities do not change them.
    """
    if request.sampling.is_deterministic:
        return request
    asked = getattr(request, "messages", None) or getattr(request, "prompt", None)
    try:
        said = msgspec.msgpack.encode((asked, request.adapter))
    except (
        ValueError,
        TypeError,
        OverflowError,
    ):  # lone surrogates and the like, as the engine will say
        said = repr((asked, request.adapter)).encode(errors="backslashreplace")
    digest = blake2b(said, digest_size=4).digest()
    sampling = msgspec.structs.replace(request.sampling, seed=int.from_bytes(digest, "big") >> 1)
    return msgspec.structs.replace(request, sampling=sampling)
