"""The embedded engine: OpenVINO GenAI in a child process.

`engine` is the parent's side, `worker` the child's loop, `lanes` what it steps, `pipeline` makes
GenAI's objects. `model` finds and converts models. `constraints` writes constraints as grammars,
tries and compiles them; `logits` reads log probabilities. Only files that run in the child
processes import openvino_genai.
"""

import sys

from penstock import lazy

# `import openvino` reports itself to Google Analytics where it finds this package, which comes with
# it. It does without a package that cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.engines.openvino.engine import OpenVINOEngine as OpenVINOEngine
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__, {"penstock.engines.openvino.engine": ("OpenVINOEngine",)}
    )
