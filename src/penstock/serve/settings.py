"""What an operator may set about the HTTP side, apart from the models."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]


class Limits(Struct, frozen=True, kw_only=True):
    """How much one request, and all together, may ask for. None is no limit.

    `max_prompt_chars` spares the tokenizer texts that no model takes; the model's context is the finer limit.
    `max_choices` bounds `n` times the prompts of a request.
    """

    max_body_bytes: Positive = 32 * 2**20
    max_prompt_chars: Positive = 4_000_000
    max_choices: Positive = 128
    max_tokens: Positive | None = None
    max_inflight: Positive | None = None


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Settings of the ingress.

    With `api_keys`, every route but /health wants one of them. The control routes exist when `dev` is true and want one
    of `admin_keys`; they are open only where no keys are set at all. Clients may send chat templates, which are
    programs, only with `trust_request_chat_template`.
    """

    api_keys: frozenset[str] = frozenset()
    admin_keys: frozenset[str] = frozenset()
    dev: bool = False
    cors_origins: tuple[str, ...] = ()
    limits: Limits = Limits()
    trust_request_chat_template: bool = False
    drain_timeout_s: Annotated[float, Meta(ge=0)] = 30.0

    def __repr__(self) -> str:
        return f"HttpSettings(api_keys=<{len(self.api_keys)}>, admin_keys=<{len(self.admin_keys)}>, dev={self.dev})"
