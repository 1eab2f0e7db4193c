"""The ingress with the names and signatures of `ray.serve.llm.ingress`."""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.serve.compat.ingress import (
        DEFAULT_ENDPOINTS as DEFAULT_ENDPOINTS,
        OpenAiIngress as OpenAiIngress,
        make_fastapi_ingress as make_fastapi_ingress,
    )
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__,
        {
            "penstock.serve.compat.ingress": (
                "DEFAULT_ENDPOINTS",
                "OpenAiIngress",
                "make_fastapi_ingress",
            ),
        },
    )
