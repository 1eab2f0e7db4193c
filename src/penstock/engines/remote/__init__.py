"""Any OpenAI-compatible server as an engine.

`engine` is the engine; `upstreams` chooses among several servers and watches them
(`balance.breaker`), `discovery` asks them what they have, `bodies` writes requests, `answers`,
`stream` and `task_answers` read what comes back, `refusals` maps errors. All of it goes through
`penstock.http`.
"""

from penstock.engines.remote.engine import RemoteEngine

__all__ = ["RemoteEngine"]
