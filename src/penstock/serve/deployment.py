"""Servers of models with the names and signatures of `ray.serve.llm.deployment`. Here are the two
sides of a model with separate prefill, and the server for SGLang.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from penstock.errors import ConfigError, PenstockError
from penstock.llm_config import LLMConfig
from penstock.serve.compat.forms import RawRequestInfo as RawRequestInfo, body_of
from penstock.serve.compat.hosts import Host
from penstock.serve.compat.server import DPServer as DPServer, LLMServer as LLMServer
from penstock.serve.prefill_decode import DecodeServer, PrefillServer
from penstock.types import CompletionRequest, Sampling


class SGLangServer(LLMServer):
    """A server whose model runs on SGLang, whether `llm_engine` says so or not."""

    runs_on: ClassVar[str | None] = "sglang"


class PDPrefillServer(LLMServer):
    """The prefill side: computes prompts for a `PDDecodeServer`."""

    own_server_cls = PrefillServer

    async def prewarm_prefill(self, prefill_request: Any) -> dict[str, Any] | None:
        """Compute one prompt; gives what the decode side would get, None if it fails."""
        connector = None if self._engine is None else self._engine.connector
        if connector is None:
            return None
        asked = CompletionRequest(
            body_of(prefill_request).get("prompt") or " ",
            Sampling(max_tokens=1, temperature=0.0),
            stream=False,
            kv_transfer_params=connector.request_params(),
        )
        try:
            deltas = [delta async for delta in await self.completions(asked)]
        except PenstockError:
            return None
        found: dict[str, Any] | None = deltas[-1].kv_transfer_params
        return found


class PDDecodeServer(LLMServer):
    """The decode side: lets `prefill_server`, the deployment of a `PDPrefillServer`, compute
    prompts, and the tokens come from its own engine.
    """

    own_server_cls = DecodeServer

    async def __init__(  # type: ignore[misc]  # awaited by `_Awaited`, or by Ray
        self,
        llm_config: LLMConfig,
        *,
        prefill_server: Any = None,
        engine_cls: type | None = None,
        model_downloader: type | None = None,
    ) -> None:
        if prefill_server is not None:
            self._about = {**self._about, "prefill": prefill_server}
        if not self._about.get("prefill"):
            raise ConfigError("the decode side needs a prefill side", field="prefill_server")
        await super().__init__(llm_config, engine_cls=engine_cls, model_downloader=model_downloader)

    async def _made_host(self) -> Host:
        host, side = await super()._made_host(), self._about["prefill"]
        if isinstance(side, LLMServer):  # in this process
            host.model.server.prefill = side._started()
        return host

    @classmethod
    def _own_config(cls, config: LLMConfig) -> LLMConfig:
        side = msgspec.structs.replace(config, server_cls=PrefillServer, prefill_config=None)
        return msgspec.structs.replace(
            config, server_cls=DecodeServer, prefill_config=config.prefill_config or side
        )
