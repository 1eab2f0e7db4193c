import socket
import threading
from contextlib import suppress

import pytest

from penstock.http.standard import content_at


def test_content_that_comes_byte_by_byte_is_given_up_in_time():
    def drip(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not gone.wait(0.02):
                connection.sendall(b"x")

    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=drip, args=(listener,))
        sender.start()
        try:
            with pytest.raises(TimeoutError):
                content_at(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", 0.2, 10**6)
        finally:
            gone.set()
            sender.join()


def test_content_that_breaks_off_is_no_content():
    def break_off(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=break_off, args=(listener,))
        sender.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        with pytest.raises(OSError, match="broke off 90 bytes before its end"):
            content_at(url, 30, 10**6)
        sender.join()


def test_an_answer_that_is_no_http_is_an_oserror():
    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"nonsense\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=answer, args=(listener,))
        sender.start()
        with pytest.raises(OSError, match="nonsense"):
            content_at(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png", 30, 10**6)
        sender.join()
    with pytest.raises(OSError, match="control characters"):
        content_at("http://127.0.0.1/a b", 30, 10**6)
