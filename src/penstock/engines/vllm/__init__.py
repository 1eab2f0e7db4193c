"""vLLM: its engine core in processes of its own, its asynchronous front in this one.

`engine` is the engine. `front` holds the running `AsyncLLM`, `running` what translates for it, with
vLLM's own HTTP application. `prompts` and `parsers` translate requests and answers. Only `library`
imports vLLM; it is loaded when an engine starts.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.engines.vllm.engine import VLLMEngine as VLLMEngine
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__, {"penstock.engines.vllm.engine": ("VLLMEngine",)}
    )
