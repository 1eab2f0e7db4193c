"""SGLang: its `Engine` in a process of its own, with SGLang's processes as that one's children.

SGLang sets signal handlers in its process, kills all children of that process when it stops, and
kills the process itself when one of its own fails. So it has a process to itself. `engine` is the
parent's side, `worker` is the process, and `model` runs SGLang inside it; `translation` maps
requests and outputs. Only `model` imports SGLang.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.engines.sglang.engine import SGLangEngine as SGLangEngine
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__, {"penstock.engines.sglang.engine": ("SGLangEngine",)}
    )
