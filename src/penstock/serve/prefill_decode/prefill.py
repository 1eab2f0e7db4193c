"""The prefill side of a model: computes prompts, and keeps their KV caches for those who go on."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from penstock.engines.tasks import Batches, mapped
from penstock.errors import UnavailableError
from penstock.kv.base import Role
from penstock.serve.models.server import LLMServer
from penstock.types import ChatRequest, CompletionRequest, Delta, Sampling

SENDER = "penstock_sender"
"""The key in a hand-over's `kv_transfer_params` under which the engine says who it is."""


class PrefillServer(LLMServer):
    """Answers with one token at most, and with where the prompt's cache is.

    Nobody waits for it: whoever asks can compute the prompt himself. So it refuses where others
    would let a request wait for the engine to load, and does not ask a second engine after the
    first has died.
    """

    role: ClassVar[Role] = "prefill"

    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        return super().generate(_clamped(request))

    def _asks_again(self) -> bool:
        return False

    def _check_open(self) -> None:
        super()._check_open()
        if self.supervisor.phase != "ready":
            raise UnavailableError(
                f"the prefill side of '{self.llm_config.model_id}' is {self.supervisor.phase}", 1.0
            )

    def _batches(self, request: ChatRequest | CompletionRequest) -> Batches:
        identity = self.engine.identity
        if identity is None:
            return super()._batches(request)
        sender = msgspec.to_builtins(
            msgspec.structs.replace(identity, adapter=request.adapter or "")
        )

        def signed(delta: Delta) -> Delta:
            if delta.finish_reason is None:
                return delta
            params = {**(delta.kv_transfer_params or {}), SENDER: sender}
            return msgspec.structs.replace(delta, kv_transfer_params=params)

        return mapped(super()._batches(request), signed)


def _clamped(request: ChatRequest | CompletionRequest) -> ChatRequest | CompletionRequest:
    """The request with one token to come, which costs least: it is not the one that the client will
    see.
    """
    request = msgspec.structs.replace(
        request, sampling=Sampling(max_tokens=1, temperature=0.0), n=1, stream=False
    )
    return (
        msgspec.structs.replace(request, echo=False)
        if isinstance(request, CompletionRequest)
        else request
    )
