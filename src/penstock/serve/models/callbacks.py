"""The user's hooks around each start of an engine, with the names of Ray Serve LLM."""

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
    last, before the engine starts. The user's class has the hooks that it needs, plain or async; a
    class derived from `penstock.serve.callbacks.CallbackBase` has all, and a `ctx` that they share.
    The class is called with `llm_config`, `raise_error_on_callback`, the configured
    `callback_kwargs` and, if it takes them, `ctx_kwargs`. Raises `ConfigError` if that fails.
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
        """Whether hooks are configured."""
        return self._object is not None

    @property
    def run_init_node(self) -> bool:
        """Whether the node is to be prepared; a hook may switch this off."""
        return bool(getattr(getattr(self._object, "ctx", None), "run_init_node", True))

    async def run(self, hook: str) -> None:
        """Call a hook, if the class has it. A hook that is not async runs in a thread, as it may
        block.

        Raises `EngineStartError` if the hook fails and `raise_error_on_callback` is on; else the
        failure is logged.
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
