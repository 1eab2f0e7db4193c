"""A relay in front of a server, which keeps what went over the wire."""

from __future__ import annotations

import socket
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType


class Wiretap:
    """Relays bytes to `address` and back while its context lasts; `url` is where."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._heard: list[tuple[str, bytes]] = []
        tap = self

        class Relay(BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(tap._address) as upstream:
                    back = threading.Thread(
                        target=tap._pump, args=("<", upstream, self.request), daemon=True
                    )
                    back.start()
                    tap._pump(">", self.request, upstream)
                    back.join()

        class Server(ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Relay)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Wiretap:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _pump(self, mark: str, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._heard.append((mark, data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one side has gone
            pass

    def take(self) -> str:
        """What was said since the last call: requests after `>`, answers after `<`."""
        heard, self._heard = self._heard, []
        said: list[str] = []
        last = ""
        for mark, data in heard:
            said.append(f"\n{mark} " if mark != last else "")
            said.append(data.decode(errors="replace"))
            last = mark
        return "".join(said)
