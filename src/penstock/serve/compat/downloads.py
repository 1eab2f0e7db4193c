"""Adapters that a user's own downloader fetches: `model_downloader` of `LLMServer`."""

from __future__ import annotations

import inspect
from typing import Any

from penstock.llm_config import LLMConfig, LoraConfig
from penstock.serve.adapters import AdapterStore, AdapterVersion, adapter_cache


class DownloadedAdapters(AdapterStore):
    """Asks `cls(download_timeout_s=, max_tries=).load_model_from_config(lora_model_id, llm_config)`
    for each new adapter. Its answer has the directory as `local_path`.
    """

    def __init__(self, config: LLMConfig, cls: Any) -> None:
        lora = config.lora_config or LoraConfig()
        super().__init__(lora, adapter_cache())
        self._llm_config = config
        self._downloader = cls(
            download_timeout_s=lora.download_timeout_s, max_tries=lora.max_download_tries
        )

    async def fetch(self, name: str) -> AdapterVersion:
        if name not in self.given:
            found = self._downloader.load_model_from_config(
                lora_model_id=f"{self._llm_config.model_id}:{name}", llm_config=self._llm_config
            )
            found = await found if inspect.isawaitable(found) else found
            self.put(name, found.local_path)
        return await super().fetch(name)
