"""The user's hooks around each start of an engine, by the names that Ray Serve LLM has."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from penstock.config import import_object
from penstock.errors import ConfigError, EngineStartError
from penstock.llm_config import LLMConfig

HOOKS = ("on_before_node_init", "on_before_download_model_files_distributed", "on_after_node_init")
_log = logging.getLogger(__name__)


class Callbacks:
    """The user's hooks of `callback_config` around each start of an engine.

    `on_before_node_init` runs first, `on_before_download_model_files_distributed` before the
    model's files are read, unless `ctx.run_init_node` is false by then, and `on_after_node_init`
    last, before the engine starts. The class has those it needs, plain or async; one derived from
    `penstock.serve.callbacks.CallbackBase` has all, and a `ctx` to share. It is made with
    `llm_config`, `raise_error_on_callback`, the configured `callback_kwargs` and, where it takes
    them, `ctx_kwargs`. Raises `ConfigError` where that cannot be.
    """

    def __init__(self, config: LLMConfig) -> None:
        self._object: Any = None
        self._raises = True
        given = config.callback_config
        if given is None or given.callback_class is None:
            return
        self._raises = given.raise_error_on_callback
        where = "callback_config.callback_class"
        cls = import_object(given.callback_class, where)
        if not isinstance(cls, type) or not any(hasattr(cls, hook) for hook in HOOKS):
            raise ConfigError(
                f"must be a class with one of {', '.join(HOOKS)}", field=where, value=cls
            )
        kwargs = {**given.callback_kwargs}
        if takes(cls, "ctx_kwargs"):
            kwargs["ctx_kwargs"] = {"runtime_env": config.runtime_env}
        try:
            self._object = cls(llm_config=config, raise_error_on_callback=self._raises, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{cls.__name__} cannot be made: {error}", field="callback_config"
            ) from None

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return self._object is not None

    @property
    def run_init_node(self) -> bool:
        """Whether the node is to be prepared, which a hook may switch off."""
        return bool(getattr(getattr(self._object, "ctx", None), "run_init_node", True))

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
            failure = (
                f"the callback {type(self._object).__name__}.{hook} failed: {type(error).__name__}:"
                f" {error}"
            )
            if self._raises:
                raise EngineStartError(failure) from error
            _log.error("%s", failure)


def takes(called: Callable[..., Any], name: str) -> bool:
    """Whether a class or a function may be called with an argument of this name."""
    parameters = inspect.signature(called).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)
