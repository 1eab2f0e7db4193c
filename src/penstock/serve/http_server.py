"""Runs an ingress under uvicorn, limits the time for heads, and stops without breaking answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import re
import signal
import socket
import sys
import termios
from array import array
from collections.abc import Callable, Generator, Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from penstock.errors import ConfigError, PenstockError, RequestError, SlowRequestError
from penstock.openai.responses import error_body
from penstock.serve.api.ingress import IngressApp
from penstock.serve.config.settings import Limits
from penstock.serve.models.handle import ModelHandle

if TYPE_CHECKING:
    from penstock.serve.tls import Tls

_log = logging.getLogger("penstock.serve")


_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listening(socket.socket):
    """A socket that listens. Where a connection cannot be accepted for want of file descriptors,
    asyncio waits for a second, but only after it has tried as often as the backlog is long, and
    with a timer and a traceback for each try: this ends its tries after the first.
    """

    _used_up = False

    def accept(self) -> tuple[socket.socket, Any]:
        """As in `socket.socket`."""
        if self._used_up:
            self._used_up = False
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            self._used_up = error.errno in _USED_UP
            raise


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Several processes may listen on a `shared`
    port, and the kernel deals connections out to them. Raises `ConfigError` where that cannot be.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's delays off only where it sees that a socket is
    # TCP.
    listening = Listening(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(2048)
        return listening
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", field="port"
        ) from None


def listen_at(path: str) -> socket.socket:
    """A Unix domain socket that listens at a path. One that a killed server left there is replaced.
    Raises `ConfigError` where that cannot be.
    """
    listening = Listening(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _is_answered(path):
            Path(path).unlink()
        listening.bind(path)
        listening.listen(2048)
        return listening
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen at {path}: {error.strerror or error}", field="uds"
        ) from None


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        return asking.connect_ex(path) == 0


def address(listening: socket.socket, *, tls: bool = False) -> str:
    """The URL under which a listening socket is reached; "unix:PATH" of a Unix domain socket."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class HttpServer:
    """One ingress on one socket.

    `run` returns after `stop`, or a signal of `ending_signals`: then /health says 503, new requests
    are refused, those under way may finish within the drain timeout, what is left ends with an
    error event, and the models stop. A second SIGTERM or SIGINT aborts at once. Where others share
    the port, new requests are left to them instead of being refused. `protocol` is what speaks with
    clients, if it is not HTTP alone; it takes `limits`, and has a property `busy`. With `tls` it is
    HTTPS.
    """

    def __init__(
        self,
        app: IngressApp,
        listening: socket.socket,
        *,
        protocol: Callable[..., asyncio.Protocol] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.app = app
        self._socket = listening
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        limits = app.ingress.settings.limits
        config = uvicorn.Config(
            app,
            http=partial(protocol or HttpConnection, limits=limits),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=1,
        )
        if tls is not None:
            config.load()  # sets what the next line replaces
            config.ssl = tls.context()
        self._uvicorn = _Uvicorn(config)

    def stop(self) -> None:
        """Begin to drain; called again, abort what is under way."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(
        self,
        handles: Iterable[ModelHandle],
        *,
        on_listening: Callable[[], None] = lambda: None,
        signals: bool = True,
    ) -> None:
        """Serve until `stop`, or with `signals` one of `ending_signals`. Raises the first model's
        error if no model at all can be started.
        """
        models = list(handles)
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()
        loop.set_exception_handler(partial(say_or_pass_on, before))
        for number in ending_signals() if signals else ():
            # A terminal that closes sends SIGHUP several times: only the others say to hurry.
            begin = self._stopping.set if number is signal.SIGHUP else self.stop
            # Only a main thread can take signals; elsewhere `stop` is called.
            with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
                loop.add_signal_handler(number, begin)
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._socket]))
        starting = asyncio.create_task(_start(models))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            on_listening()
            await asyncio.wait({serving, stop, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        finally:
            self._uvicorn.should_exit = True
            for task in (stop, starting):
                task.cancel()
            await asyncio.gather(stop, starting, serving, return_exceptions=True)
            await asyncio.gather(*(model.stop(0.0) for model in models), return_exceptions=True)
            loop.set_exception_handler(before)

    async def _drain(self) -> None:
        ingress = self.app.ingress
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            self._leave()
        _log.info("draining: %d requests are under way", ingress.inflight)
        timeout_s = ingress.settings.drain_timeout_s
        whole = await ingress.drain(30.0 if timeout_s is None else timeout_s, self._hurry)
        self._cut_off()
        _log.info("drained" if whole else "drained; some requests were aborted")

    def _leave(self) -> None:
        """Accept no more connections; close idle ones, and the others after their answers."""
        for server in self._uvicorn.servers:
            server.close()
        for connection in list(self._uvicorn.server_state.connections):
            connection.shutdown()

    def _cut_off(self) -> None:
        """Abort the connections whose client does not read its answer: uvicorn would wait."""
        for connection in list(self._uvicorn.server_state.connections):
            if _busy(connection):
                connection.transport.abort()


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a server to end. SIGHUP is none where it is ignored, as under nohup."""
    asked = (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return asked
    return (*asked, signal.SIGHUP)


def say_or_pass_on(
    before: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None,
    loop: asyncio.AbstractEventLoop,
    context: dict[str, Any],
) -> None:
    """Say in a line that connections cannot be accepted; leave other faults to who was there
    `before`.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in _USED_UP and "socket" in context:
        _log.error(
            "no connection can be accepted for a second: %s (too many clients for the limit on"
            " open files, which `ulimit -n` raises?)",
            error.strerror,
        )
    elif before is not None:
        before(loop, context)
    else:
        loop.default_exception_handler(context)


def _busy(connection: Any) -> bool:
    """Whether an answer is under way on a connection."""
    if (cycle := getattr(connection, "cycle", None)) is not None:  # uvicorn's own
        return not cycle.response_complete
    return bool(getattr(connection, "busy", False))


async def _start(models: list[ModelHandle]) -> None:
    """Start all models side by side; the failure of one harms no other."""
    results = await asyncio.gather(*(model.start() for model in models), return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for model, result in zip(models, results, strict=True):
        if isinstance(result, PenstockError):
            _log.error("model '%s' could not be started: %s", model.model_id, result)
        elif isinstance(result, BaseException):
            _log.error("model '%s' could not be started", model.model_id, exc_info=result)
    if failures and len(failures) == len(models):
        raise failures[0]


class _Uvicorn(uvicorn.Server):
    """Without uvicorn's own way with signals, which ends the process by the signal it was sent."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


# Uvicorn chooses the class at import.
class HttpConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's connection. It closes unless a request's head is complete within `head_timeout_s`
    of its start, and the first request begins within that time, or if a head is too large. It is
    aborted when its client takes nothing of an answer for `write_timeout_s`.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._begun = False
        self._unparsed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeout for the first request's head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeouts."""
        self._head_is_there()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timeout for a client that does not read."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """Cancel the timeout for a client that does not read."""
        self._is_read()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Restart or cancel the timeout for a head, whichever the data calls for."""
        self._begun = True
        self._unparsed += len(data)
        if self.cycle is None or self.cycle.response_complete:
            end = data.find(b"\r\n\r\n")
            if offer := _UPGRADE.search(data, 0, len(data) if end < 0 else end):
                data = data[: offer.start()] + b"\nx-grade" + data[offer.end() :]
        super().data_received(data)
        if _HAS_NO_BOUND and self._unparsed > _LARGEST_HEAD and not self.transport.is_closing():
            self._refuse(_TOO_LARGE)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_is_there()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def on_headers_complete(self) -> None:
        """A head has ended. Only httptools calls this, and the next two."""
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has ended."""
        self._unparsed = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP, or a head that h11 finds too large."""
        is_large = getattr(sys.exception(), "error_status_hint", None) == 431
        self._refuse(_TOO_LARGE if is_large else _NO_HTTP)

    def _refuse(self, answer: bytes) -> None:
        """Answer, unless the request's answer has begun, or one is still to come for a request
        before it, and close.
        """
        cycle = self.cycle
        between = cycle is None or (cycle.response_complete and not cycle.more_body)
        if (between or not cycle.response_started) and not getattr(self, "pipeline", None):
            self.transport.write(answer)
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._too_slow)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._begun and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def _await_reading(self) -> None:
        self._unsent = self._not_taken()
        self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self._look)

    def _is_read(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _not_taken(self) -> int:
        """The bytes that the client has not acknowledged: the kernel may hold megabytes of them,
        so that the transport's own buffer stands still while a slow client reads.
        """
        held = array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, held)
        size: int = self.transport.get_write_buffer_size() + held[0]
        return size

    def _look(self) -> None:
        """The timeout went off: go on with a client that is slow, but reads."""
        if self._not_taken() < self._unsent:
            self._await_reading()
            return
        seconds = self._limits.write_timeout_s
        _log.info("a client read nothing for %g s: its connection is closed", seconds)
        self.transport.abort()


def _answer(error: PenstockError) -> bytes:
    body = msgspec.json.encode(error_body(error))
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type:"
        f" application/json\r\ncontent-length: {len(body)}"
    )
    return f"{head}\r\nconnection: close\r\n\r\n".encode() + body


_UPGRADE = re.compile(rb"\n(?i:upgrade)(?=[ \t]*:)")
"""The header by which a client offers another protocol beside its request, as Java's and `curl
--http2` offer HTTP/2. A server may pass over it; httptools would drop the request's body.
"""
_LARGEST_HEAD = 1 << 16
"""Bytes of a head, as in h11, and of what else is no body, such as trailers."""
_HAS_NO_BOUND = hasattr(AutoHTTPProtocol, "on_body")
"""Whether connections are httptools', which takes heads of any size; h11 refuses them itself."""
_NO_HTTP = _answer(RequestError("the connection's bytes are no valid HTTP request"))
_TOO_SLOW = _answer(SlowRequestError("the head of the request came too slowly"))
_TOO_LARGE = _answer(
    RequestError(f"the head of the request is larger than {_LARGEST_HEAD} bytes", status=431)
)
