"""Certificates of a server, made by openssl."""

import re
import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.errors import ConfigError
from penstock.serve.tls import Tls

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")


def openssl(*command, cwd):
    subprocess.run(["openssl", *command], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two certificates, each with its key; one key is also encrypted, and beside its certificate in
    one file.
    """
    folder = tmp_path_factory.mktemp("pem")
    for name in ("one", "two"):
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", "1", "-subj", "/CN=here"),
            *("-addext", "subjectAltName=DNS:here"),
            cwd=folder,
        )
    openssl("pkey", "-in", "one.key", "-aes256", "-passout", "pass:x", "-out", "l.key", cwd=folder)
    both = (folder / "one.key").read_bytes() + (folder / "one.crt").read_bytes()
    (folder / "both.pem").write_bytes(both)
    (folder / "no.pem").write_text("nothing\n")
    return folder


def tls(folder, *, cert_reqs=0, **files):
    return Tls(**{name: str(folder / file) for name, file in files.items()}, cert_reqs=cert_reqs)


def handshake(server, client):
    """What the client reads of a server that says hello once both have shaken hands."""
    one, other = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(one, server_side=True) as speaking:
                speaking.sendall(b"hello")
        except ssl.SSLError:
            one.close()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(serve)
        with client.wrap_socket(other, server_hostname="here") as listening:
            return listening.recv(16)


def trusting(folder):
    return ssl.create_default_context(cafile=folder / "one.crt")


@pytest.mark.parametrize(
    "files", [{"certfile": "one.crt", "keyfile": "one.key"}, {"certfile": "both.pem"}]
)
def test_a_server_proves_who_it_is(folder, files):
    assert handshake(tls(folder, **files).context(), trusting(folder)) == b"hello"


def test_a_client_must_do_so_too_where_it_is_asked(folder):
    server = tls(
        folder, certfile="one.crt", keyfile="one.key", ca_certs="two.crt", cert_reqs=2
    ).context()
    client = trusting(folder)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert handshake(server, client)
    client.load_cert_chain(folder / "two.crt", folder / "two.key")
    assert handshake(server, client) == b"hello"


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"certfile": "a.crt"}, r"--ssl-certfile: .*a\.crt: No such file"),
        ({"certfile": "no.pem"}, r"--ssl-certfile: .*no\.pem holds no certificate in PEM form"),
        ({"certfile": "one.crt"}, r"--ssl-keyfile: is missing, and .*one\.crt holds no key"),
        ({"keyfile": "a.key"}, r"--ssl-keyfile: .*a\.key: No such file"),
        ({"keyfile": "no.pem"}, r"--ssl-keyfile: .*no\.pem holds no key in PEM form"),
        ({"keyfile": "two.key"}, r"--ssl-keyfile: .*two\.key is not the key of the certificate"),
        ({"keyfile": "l.key"}, r"--ssl-keyfile: .*l\.key is encrypted; openssl pkey -in .*l\.key"),
        ({"keyfile": "one.key", "cert_reqs": 2}, r"--ssl-ca-certs: must say who signs"),
        ({"keyfile": "one.key", "ca_certs": "two.crt"}, r"--ssl-cert-reqs: must be 1 or 2"),
        (
            {"keyfile": "one.key", "ca_certs": "no.pem", "cert_reqs": 1},
            r"--ssl-ca-certs: .*no\.pem holds no certificate",
        ),
    ],
)
def test_what_cannot_be_used_is_named(folder, given, fault):
    with pytest.raises(ConfigError) as caught:
        tls(folder, **{"certfile": "one.crt", **given}).context()
    assert re.match(fault, str(caught.value))
