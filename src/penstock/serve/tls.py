"""The certificate by which a server proves who it is, and those of clients that must do so too."""

from __future__ import annotations

import ssl
from pathlib import Path

from msgspec import Struct

from penstock.errors import ConfigError


class Tls(Struct, frozen=True, kw_only=True):
    """Files in PEM form. Without a `keyfile` the key is in `certfile`. `ca_certs` are those that
    sign clients' certificates; `cert_reqs` is as in Python's ssl: 0 none, 1 if a client has one, 2
    each client needs one.
    """

    certfile: str
    keyfile: str | None = None
    ca_certs: str | None = None
    cert_reqs: int = 0

    def context(self) -> ssl.SSLContext:
        """The context of a server. Raises `ConfigError`, which names the option."""
        if self.cert_reqs and self.ca_certs is None:
            raise ConfigError("must say who signs clients' certificates", field="--ssl-ca-certs")
        if self.ca_certs is not None and not self.cert_reqs:
            raise ConfigError(
                "must be 1 or 2 beside --ssl-ca-certs: with 0 no client is asked for a certificate",
                field="--ssl-cert-reqs",
            )
        for option in ("certfile", "keyfile", "ca_certs"):
            if (path := getattr(self, option)) is not None:
                _check_readable(f"--ssl-{option.replace('_', '-')}", path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load_pair(context)
        if self.ca_certs is not None:
            context.verify_mode = ssl.VerifyMode(self.cert_reqs)
            try:
                context.load_verify_locations(self.ca_certs)
            except ssl.SSLError:
                raise ConfigError(
                    f"{self.ca_certs} holds no certificate in PEM form", field="--ssl-ca-certs"
                ) from None
        return context

    def _load_pair(self, context: ssl.SSLContext) -> None:
        keyfile, option = self.keyfile or self.certfile, "--ssl-keyfile"
        is_locked = False

        def locked() -> str:  # else OpenSSL would ask for the password on the terminal
            nonlocal is_locked
            is_locked = True
            return "-"

        try:
            context.load_cert_chain(self.certfile, self.keyfile, locked)
        except ssl.SSLError as error:
            if is_locked:
                why = (
                    f"{keyfile} is encrypted; openssl pkey -in {keyfile} -out KEYFILE makes one"
                    " that is not, for its owner's eyes alone"
                )
            elif error.reason == "KEY_VALUES_MISMATCH":
                why = f"{keyfile} is not the key of the certificate in {self.certfile}"
            elif "BEGIN CERTIFICATE" not in Path(self.certfile).read_text(errors="replace"):
                why, option = f"{self.certfile} holds no certificate in PEM form", "--ssl-certfile"
            elif self.keyfile is None:
                why = f"is missing, and {keyfile} holds no key"
            else:
                why = f"{keyfile} holds no key in PEM form, or the certificate is damaged"
            raise ConfigError(why, field=option) from None


def _check_readable(option: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", field=option) from None
