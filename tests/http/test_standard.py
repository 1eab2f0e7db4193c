import socket
import threading
from contextlib import suppress

import pytest

from penstock.http.opened import content_at


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
