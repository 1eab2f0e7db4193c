"""SGLang: its `Engine` in a process of its own, with SGLang's processes as that one's children.

SGLang sets the signal handlers of the process that it runs in, kills all of that process's children
when it stops, and the process itself when one of its own fails: so it has one to itself. `engine`
is the parent's side, `worker` that process; `sampling` and `outputs` translate. Everything that is
imported from SGLang stands in `library`.
"""

from penstock.engines.sglang.engine import SGLangEngine

__all__ = ["SGLangEngine"]
