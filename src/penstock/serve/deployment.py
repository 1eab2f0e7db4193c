"""Servers of models with the names and signatures of `ray.serve.llm.deployment`."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.serve.compat.forms import (
        RawRequestInfo as RawRequestInfo,
    )
    from penstock.serve.compat.prefill_decode import (
        PDDecodeServer as PDDecodeServer,
        PDPrefillServer as PDPrefillServer,
    )
    from penstock.serve.compat.server import (
        DPServer as DPServer,
        LLMServer as LLMServer,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.serve.compat.forms": ("RawRequestInfo",),
            "penstock.serve.compat.prefill_decode": (
                "PDDecodeServer",
                "PDPrefillServer",
            ),
            "penstock.serve.compat.server": (
                "DPServer",
                "LLMServer",
            ),
        },
    )
