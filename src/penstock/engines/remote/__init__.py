"""Any OpenAI-compatible server as an engine.

`engine` is the engine; `upstreams` chooses among several servers and watches them
(`balance.breaker`), `discovery` asks for their models, `requests` writes paths and bodies,
`answers` and `stream` read answers, `refusals` maps errors. All of it goes through `penstock.http`.

The forms are read without the engine's HTTP client, which is an extra.
"""

from penstock import lazy

TYPE_CHECKING = False  # known to type checkers
if TYPE_CHECKING:
    from penstock.engines.remote.engine import RemoteEngine as RemoteEngine
else:
    __getattr__, __dir__, __all__ = lazy.attach(
        __name__, {"penstock.engines.remote.engine": ("RemoteEngine",)}
    )
