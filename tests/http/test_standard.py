import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from penstock.http.standard import content_at


@contextmanager
def answered(answer):
    """The URL of an image at a server that answers one connection so."""

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        server.join()


def test_content_that_comes_byte_by_byte_is_given_up_in_time():
    def drip(connection):
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not gone.wait(0.02):
                connection.sendall(b"x")

    gone = threading.Event()
    with answered(drip) as url:
        try:
            with pytest.raises(TimeoutError):
                content_at(url, 0.2, 10**6)
        finally:
            gone.set()


def test_content_that_breaks_off_is_no_content():
    def break_off(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")

    broken = pytest.raises(OSError, match="broke off 90 bytes before its end")
    with answered(break_off) as url, broken:
        content_at(url, 30, 10**6)


def test_an_answer_that_is_no_http_is_an_oserror():
    def answer(connection):
        connection.sendall(b"nonsense\r\n\r\n")

    with answered(answer) as url, pytest.raises(OSError, match="nonsense"):
        content_at(url, 30, 10**6)
    with pytest.raises(OSError, match="control characters"):
        content_at("http://127.0.0.1/a b", 30, 10**6)
