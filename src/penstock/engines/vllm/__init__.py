"""vLLM: its engine core in processes of its own, its asynchronous front in this one.

`engine` is what Penstock sees. `front` holds the running `AsyncLLM`; `translation` translates for
it, `native` is its own HTTP application. Everything that is imported from vLLM stands in `library`,
and is loaded when an engine starts.
"""

from penstock.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
