"""Hooks around the start of a node: bases for `callback_config.callback_class`."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.llm_config.model import (
        CallbackConfig as CallbackConfig,
    )
    from penstock.serve.compat.callbacks import (
        CallbackBase as CallbackBase,
        CallbackCtx as CallbackCtx,
        CloudDownloader as CloudDownloader,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.serve.compat.callbacks": (
                "CallbackBase",
                "CallbackCtx",
                "CloudDownloader",
            ),
            "penstock.llm_config.model": ("CallbackConfig",),
        },
    )
