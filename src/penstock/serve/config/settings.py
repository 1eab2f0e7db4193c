"""The operator's settings for the HTTP side, apart from the models."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from penstock.config import Pause, Positive, Seconds
from penstock.errors import ConfigError

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^*/\sA-Z]+")


def check_keys(keys: Iterable[str], field: str) -> None:
    """Raise `ConfigError`, which does not say the key, unless clients can send each of `keys`."""
    for key in keys:
        if not key:
            raise ConfigError("a key is given, and is empty", field=field)
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                "keys must be printable ASCII without spaces (a comment in a file of keys has a"
                " line of its own)",
                field=field,
            )


def check_without_engine(settings: HttpSettings) -> None:
    """Raise `ConfigError` for what an ingress whose engines run in other processes cannot have."""
    if settings.engine_app is not None:
        raise ConfigError(
            "is for the local runtime",
            field="http.engine_app",
            hint="The engines run in other processes.",
        )


class Limits(Struct, frozen=True, kw_only=True):
    """Limits for one request, and for all at once. None is no limit.

    `max_prompt_chars` spares the tokenizer texts that exceed every model's context; the model's own
    context is the finer limit. `max_choices` bounds `n` × the prompts of a request. `max_inflight`
    counts requests whose body has arrived. The head of a request must arrive within
    `head_timeout_s`, its body within `body_timeout_s` plus a second for each 8 KiB received.
    A client that reads nothing of its answer for `write_timeout_s` loses its connection.
    """

    max_body_bytes: Positive = 32 * 2**20
    max_prompt_chars: Positive = 4_000_000
    max_choices: Positive = 128
    max_tokens: Positive | None = None
    max_inflight: Positive | None = None
    head_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    write_timeout_s: Seconds = 60.0


class StoreSettings(Struct, frozen=True, kw_only=True):
    """Where responses and conversations are stored, and for how long.

    `path` is an SQLite file. What nobody has read or continued for `ttl_s` is deleted. Beyond
    `max_objects` responses and conversations, or `max_bytes` of their content, the least recently
    used ones are evicted. `max_background` responses run in the background of one server at once.
    """

    path: str
    ttl_s: Seconds = 30 * 86400.0
    max_objects: Positive = 100_000
    max_bytes: Positive = 2**30
    max_background: Positive = 256


class WebhookSettings(Struct, frozen=True, kw_only=True):
    """An address to tell that a batch has ended. `secret` signs the message, as Standard Webhooks
    has it: "whsec_" and 24 to 64 bytes in base64.
    """

    url: str
    secret: str


class BatchSettings(Struct, frozen=True, kw_only=True):
    """The batch and files APIs: where their state is, and their limits.

    `path` is a folder for the database, for files and for batches under way. Several ingresses
    share `database`, a PostgreSQL URL, and `files`, an fsspec URL. A batch has at most `max_lines`
    lines, a file `max_file_bytes`, and all files together `max_bytes`. Files are deleted `ttl_s`
    after they were made unless their maker says otherwise, and batches `ttl_s` after their end.
    `max_batches` of them run at once here, with `max_in_flight` lines under way. A server that is
    silent for `lease_s` loses its batches to others. Raises `ConfigError` for an empty place.
    """

    path: str
    database: str | None = None
    files: str | None = None
    max_lines: Positive = 50_000
    max_file_bytes: Positive = 200 * 2**20
    max_bytes: Positive = 10 * 2**30
    ttl_s: Seconds = 30 * 86400.0
    max_batches: Positive = 16
    max_in_flight: Positive = 256
    lease_s: Seconds = 15.0
    webhooks: tuple[WebhookSettings, ...] = ()

    def __post_init__(self) -> None:
        for name in ("path", "database", "files"):
            if getattr(self, name) == "":
                raise ConfigError("must not be empty", field=name)

    def __repr__(self) -> str:
        return f"BatchSettings(path={self.path!r})"


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Settings of the ingress.

    With `api_keys`, every route except the public ones (/health, /ready) needs a key. The control
    routes exist with `dev` and need one of `admin_keys`; they are open only if no keys are set at
    all. Without `api_keys` a web page of an origin outside `cors_origins` may change nothing, and
    over a loopback connection a request must name `localhost`, an IP address, this machine's
    hostname or one of `allowed_hosts` ("*" is any). `root_path` is where a proxy shows the server:
    paths may begin with it, and the API's description says so. `engine_app` is a path under which
    admins reach the engine's own application (vLLM's), if there is one model, in this process.
    Clients may send chat templates, which are programs, only with `trust_request_chat_template`.
    With `vllm_metrics` /metrics has vLLM's names as well. Responses are stored only with a `store`;
    there are batches and files only with `batches`. With `console` there is a page for operators
    and users at /console. A `drain_timeout_s` of None is 30.

    Raises `ConfigError` for a key that cannot be sent, among others for an empty one: it would let
    in everybody who sends none.
    """

    api_keys: frozenset[str] = frozenset()
    admin_keys: frozenset[str] = frozenset()
    dev: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = Limits()
    trust_request_chat_template: bool = False
    vllm_metrics: bool = False
    root_path: str = ""
    engine_app: str | None = None
    drain_timeout_s: Pause | None = None
    store: StoreSettings | None = None
    batches: BatchSettings | None = None
    console: bool = True

    def __post_init__(self) -> None:
        for name in ("api_keys", "admin_keys"):
            check_keys(getattr(self, name), name)
        for name in ("root_path", "engine_app"):
            path = getattr(self, name)
            if path and (not path.startswith("/") or path.endswith("/")):
                raise ConfigError(
                    "must begin with a slash, and not end with one", field=name, value=path
                )
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"'{origin}' is no web origin, such as https://ui.example:8443 (no path), or *",
                    field="cors_origins",
                    value=origin,
                )
        for host in self.allowed_hosts:
            if not host or {*host} & {*":/ "}:
                raise ConfigError(
                    f"'{host}' is no host name, such as box.example (no port), or *",
                    field="allowed_hosts",
                    value=host,
                )

    def __repr__(self) -> str:
        return (
            f"HttpSettings(api_keys=<{len(self.api_keys)}>, admin_keys=<{len(self.admin_keys)}>,"
            f" dev={self.dev})"
        )
