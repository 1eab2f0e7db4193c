"""Which model and adapter a request's `model` means, and the list of them all. Calls no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.errors import ConfigError, ModelNotFoundError, RequestError, nearest
from penstock.serve.models.handle import ModelCard, ModelHandle

_ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
"""Names of adapters become names of folders, so no name may lead elsewhere."""
_GENERATING = frozenset({"chat", "completions"})


class Target(NamedTuple):
    """What answers a request. `name` is how responses call it."""

    handle: ModelHandle
    adapter: str | None
    name: str


class ModelNames:
    """The models of one ingress, by id. `lora_paths` names those that find adapters on demand."""

    def __init__(
        self,
        handles: Mapping[str, ModelHandle],
        cards: Mapping[str, ModelCard] | None = None,
        lora_paths: Mapping[str, str] | None = None,
    ) -> None:
        self.handles = dict(handles)
        self._aliases: dict[str, str] = {}
        for model_id, handle in self.handles.items():
            for alias in getattr(handle, "aliases", ()):  # a user's handle may lack them
                if self._aliases.setdefault(alias, model_id) != model_id or alias in self.handles:
                    raise ConfigError(
                        f"two models are called '{alias}'",
                        field="model_loading_config.aliases",
                        value=alias,
                    )
        self._cards = dict(cards or {})
        self._lora_paths = dict(lora_paths or {})

    async def find(self, name: str) -> Target:
        """The target of "base", of "base:adapter", or of "adapter" if only one model has it.

        An empty name means the only model, or the only one that generates. Raises
        `ModelNotFoundError` with the nearest name.
        """
        if not name:
            named = list(self.handles)
            if len(named) > 1:
                named = [model_id for model_id in named if _generates(self.handles[model_id])]
            if len(named) == 1:
                return Target(self.handles[named[0]], None, named[0])
            raise RequestError(
                f"model is missing. {nearest('', self.handles)}".rstrip(), param="model"
            )
        name = self._aliases.get(name, name)
        if name in self.handles:
            return Target(self.handles[name], None, name)
        base, colon, adapter = name.rpartition(":")
        if base in self._aliases:
            base = self._aliases[base]
            name = f"{base}:{adapter}"
        if colon and base in self.handles:
            return await self._with_adapter(base, self.handles[base], adapter, name)
        return await self._adapter_alone(name)

    async def cards(self) -> list[dict[str, Any]]:
        """Every model, each followed by its adapters, in the form of `/v1/models`."""
        cards = []
        for model_id, handle in self.handles.items():
            cards.append(self._card(model_id, handle))
            cards += [
                {**cards[-1], "id": alias, "parent": model_id}
                for alias, named in self._aliases.items()
                if named == model_id
            ]
            cards += [self._card(model_id, handle, adapter) for adapter in await handle.adapters()]
        return cards

    async def card(self, name: str) -> dict[str, Any]:
        """The card of one model or adapter."""
        handle, adapter, _ = await self.find(name)
        if adapter is not None and adapter not in (known := await handle.adapters()):
            raise _unknown_adapter(handle.model_id, adapter, known)
        return self._card(handle.model_id, handle, adapter)

    async def _with_adapter(
        self, base: str, handle: ModelHandle, adapter: str, name: str
    ) -> Target:
        if not _ADAPTER.fullmatch(adapter):
            raise ModelNotFoundError(f"'{adapter[:130]}' is no name of an adapter", param="model")
        # Where adapters are found on demand, the list may be older than the adapter: its server has
        # the last word.
        if base not in self._lora_paths and adapter not in (known := await handle.adapters()):
            raise _unknown_adapter(base, adapter, known)
        return Target(handle, adapter, name)

    async def _adapter_alone(self, name: str) -> Target:
        adapters = {model_id: await handle.adapters() for model_id, handle in self.handles.items()}
        owners = [model_id for model_id, names in adapters.items() if name in names]
        if len(owners) == 1:
            return Target(self.handles[owners[0]], name, name)
        if owners:
            ways = ", ".join(f"'{owner}:{name}'" for owner in owners)
            raise ModelNotFoundError(
                f"several models have an adapter '{name}': ask for one of {ways}", param="model"
            )
        known = [
            *self.handles,
            *(f"{model_id}:{adapter}" for model_id, names in adapters.items() for adapter in names),
        ]
        raise ModelNotFoundError(
            f"no model '{name[:200]}'. {nearest(name[:200], known)}".rstrip(), param="model"
        )

    def _card(
        self, model_id: str, handle: ModelHandle, adapter: str | None = None
    ) -> dict[str, Any]:
        card = self._cards.get(model_id) or handle.card()
        known = handle.card().context_length  # may have been learned since the card was given
        state = handle.state()
        return {
            "id": model_id if adapter is None else f"{model_id}:{adapter}",
            "object": "model",
            "created": card.created,
            "owned_by": card.owned_by,
            "parent": card.base_model if adapter is None else model_id,
            "engine": handle.engine_name,
            "state": state.state,
            "reason": state.reason or None,
            "max_model_len": known if known is not None else card.context_length,
            "metadata": card.metadata,
        }


def _generates(handle: ModelHandle) -> bool:
    """Whether a model generates text. One that was never loaded may."""
    capabilities = handle.card().metadata.get("capabilities")
    return capabilities is None or not _GENERATING.isdisjoint(capabilities["tasks"])


def _unknown_adapter(base: str, adapter: str, known: list[str]) -> ModelNotFoundError:
    hint = nearest(adapter, known) or "It has none."
    return ModelNotFoundError(f"model '{base}' has no adapter '{adapter}'. {hint}", param="model")
