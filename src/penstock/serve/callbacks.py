"""Hooks around the start of a node, with the names of Ray's callbacks."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.engines.disk.sources import file_system, fsspec_url
from penstock.errors import ConfigError, nearest
from penstock.llm_config.model import CallbackConfig as CallbackConfig

_log = logging.getLogger(__name__)


@dataclass
class CallbackCtx:
    """What the hooks of one start share. With `run_init_node` False the hook before the download is
    left out. `worker_node_download_model` and `placement_group` are Ray's own; `runtime_env` is
    that of the configuration.
    """

    worker_node_download_model: Any = None
    placement_group: Any = None
    runtime_env: dict[str, Any] | None = None
    custom_data: dict[str, Any] = field(default_factory=dict)
    run_init_node: bool = True


class CallbackBase:
    """Base of `callback_class`. Its hooks do nothing; `ctx` is shared by them, `kwargs` are the
    configured `callback_kwargs`.
    """

    def __init__(
        self,
        llm_config: Any,
        raise_error_on_callback: bool = True,
        ctx_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.llm_config = llm_config
        self.raise_error_on_callback = raise_error_on_callback
        self.kwargs = kwargs
        self.ctx = CallbackCtx(**(ctx_kwargs or {}))

    async def on_before_node_init(self) -> None:
        """Called first, before any other callback of the node."""

    async def on_after_node_init(self) -> None:
        """Called when the node is ready for the engine, before the engine starts."""

    def on_before_download_model_files_distributed(self) -> None:
        """Called before the model's files are read, in a thread."""

    async def run_callback(self, method_name: str) -> None:
        """Call a hook by its name. Raises what it raises, unless errors do not count."""
        try:
            result = self._method(method_name)()
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            self._failed(method_name, error)

    def run_callback_sync(self, method_name: str) -> None:
        """Call a hook by its name, outside of an event loop."""
        asyncio.run(self.run_callback(method_name))

    def _method(self, name: str) -> Any:
        if not hasattr(self, name):
            raise AttributeError(f"{type(self).__name__} has no hook '{name}'")
        return getattr(self, name)

    def _failed(self, name: str, error: Exception) -> None:
        if self.raise_error_on_callback:
            raise error
        _log.error("the callback %s.%s failed: %s", type(self).__name__, name, error)


class CloudDownloader(CallbackBase):
    """Copies files before the model is read: `paths` lists pairs of a URL and a local path. Raises
    `ConfigError` for a URL of an unknown kind.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        where = "callback_config.callback_kwargs.paths"
        paths = self.kwargs.get("paths")
        if not isinstance(paths, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in paths
        ):
            raise ConfigError("must be pairs of a URL and a local path", field=where, value=paths)
        from fsspec import available_protocols  # imported only where it is used

        for url, _ in paths:
            scheme, separator, _ = fsspec_url(str(url)).partition("://")
            if not separator or scheme not in available_protocols():
                hint = nearest(scheme, ("s3", "gs", "abfss", "azure"))
                raise ConfigError("unknown kind of URL", field=where, value=url, hint=hint)

    def on_before_download_model_files_distributed(self) -> None:
        """Copy the files of `paths` from their URLs to the node's disk."""
        for url, path in self.kwargs["paths"]:
            fs, source = file_system(str(url))
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            fs.get(source, str(path), recursive=fs.isdir(source))
