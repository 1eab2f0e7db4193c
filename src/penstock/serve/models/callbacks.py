"""The hooks of `callback_config`: a user's own code around each start of an engine.

`on_before_node_init` runs first, `on_before_download_model_files_distributed` right before the
engine reads its model, `on_after_node_init` when it runs, before the first request. A class has
those it needs, plain or async.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from penstock.config import import_object
from penstock.errors import ConfigError, EngineStartError
from penstock.llm_config import LLMConfig

HOOKS = ("on_before_node_init", "on_before_download_model_files_distributed", "on_after_node_init")
_log = logging.getLogger(__name__)


class Callbacks:
    """The callback object of one model, if its configuration names one.

    It is made with `llm_config`, `raise_error_on_callback` and the configured `callback_kwargs`.
    Raises `ConfigError` where that cannot be.
    """

    def __init__(self, config: LLMConfig) -> None:
        self._object: Any = None
        self._raises = True
        given = config.callback_config
        if given is None or given.callback_class is None:
            return
        self._raises = given.raise_error_on_callback
        where = "callback_config.callback_class"
        cls = given.callback_class
        if isinstance(cls, str):
            cls = import_object(cls, where)
        if not isinstance(cls, type) or not any(hasattr(cls, hook) for hook in HOOKS):
            raise ConfigError(
                f"must be a class with one of {', '.join(HOOKS)}", field=where, value=cls
            )
        try:
            self._object = cls(
                llm_config=config, raise_error_on_callback=self._raises, **given.callback_kwargs
            )
        except TypeError as error:
            raise ConfigError(
                f"{cls.__name__} cannot be made: {error}", field="callback_config"
            ) from None

    async def run(self, hook: str) -> None:
        """Call a hook, if there is one; a plain one in a thread, for it may block.

        Raises `EngineStartError` if it fails and its errors count; else that is logged.
        """
        method = getattr(self._object, hook, None)
        if method is None:
            return
        try:
            if inspect.iscoroutinefunction(method):
                await method()
            else:
                await asyncio.to_thread(method)
        except Exception as error:
            told = (
                f"the callback {type(self._object).__name__}.{hook} failed: {type(error).__name__}:"
                f" {error}"
            )
            if self._raises:
                raise EngineStartError(told) from error
            _log.error("%s", told)
