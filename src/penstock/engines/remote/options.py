"""`engine_kwargs` of the remote engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.config import Count, Pause, Positive, Rate, Seconds, masked, parse_options
from penstock.errors import ConfigError
from penstock.http.endpoint import endpoint

Task = Literal[
    "chat",
    "completions",
    "decide",
    "embeddings",
    "classify",
    "score",
    "rerank",
    "transcriptions",
    "speech",
    "tokenize",
    "detokenize",
]


class UpstreamOptions(Struct, frozen=True, kw_only=True):
    """One server. `base_url` ends where `/chat/completions` begins, usually in `/v1`. A server gets
    requests in proportion to its `weight`. `model` is the model's name there, if it has another.
    `api_key_env` names the variable of the environment that holds the key; `${NAME}` in `headers`
    is such a variable too.
    """

    base_url: str
    weight: Annotated[float, Meta(gt=0)] = 1.0
    model: str | None = None
    api_key_env: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class RemoteOptions(Struct, frozen=True, kw_only=True):
    """One server (`base_url`, `api_key_env`, `headers` as in `UpstreamOptions`) or several
    `upstreams`.

    For each server: at most `concurrency` requests at once, fewer while it refuses for load
    (`adaptive`), within `requests_per_minute` and `tokens_per_minute`. A new connection may take
    `connect_timeout_s`, the wait for the next piece of an answer (all of it, where it is not
    streamed) `timeout_s`. A failure that may pass is tried again up to `max_retries` times, on
    another server at once where there is one, until the first token has come. `routing` names the
    policy that chooses between several servers. After `trip_after` different requests that fail, or
    connections that cannot be made, with no answer between, a server is probed, and if it does not
    answer that, left alone for `cooldown_s`, then twice that, and so on; while all are, requests
    wait up to `patience_s`; then the engine counts as dead.

    `tasks`, `max_model_len`, `max_top_logprobs` and `structured` state what the servers do not.
    With `discover` false they are not asked. The servers call the length limit of a chat answer
    `max_tokens_field`; `stream_usage` false is for servers that refuse `stream_options`.
    `extra_body` is added to every body of a chat or completion.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    upstreams: list[dict[str, Any]] = field(default_factory=list)
    concurrency: Positive = 64
    adaptive: bool = True
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    connect_timeout_s: Seconds = 10.0
    timeout_s: Seconds = 600.0
    max_retries: Count = 2
    base_retry_wait_s: Pause = 0.5
    routing: Literal["least_loaded", "prefix_aware", "least_busy", "round_robin"] = "least_loaded"
    trip_after: Positive = 5
    cooldown_s: Seconds = 1.0
    patience_s: Pause = 30.0
    discover: bool = True
    tasks: list[Task] | None = None
    max_model_len: Positive | None = None
    max_top_logprobs: Annotated[int, Meta(ge=-1)] | None = None
    structured: list[Literal["json_schema", "json_object", "regex", "grammar"]] | None = None
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    stream_usage: bool = True
    max_response_bytes: Positive = 64 << 20
    extra_body: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"RemoteOptions({masked(msgspec.structs.asdict(self))!r})"


COSTS_ONLY = frozenset(
    {
        # Where the model is and how it is reached; the keys that headers may hold belong in no
        # manifest anyway.
        *("base_url", "upstreams", "headers", "api_key_env"),
        *("discover", "max_tokens_field", "stream_usage"),
        *("concurrency", "adaptive", "requests_per_minute"),
        *("tokens_per_minute", "max_response_bytes"),
        *("connect_timeout_s", "timeout_s", "max_retries"),
        *("base_retry_wait_s", "trip_after", "cooldown_s"),
        *("patience_s", "routing"),
    }
)


def parse_remote_options(given: Mapping[str, Any]) -> tuple[RemoteOptions, list[UpstreamOptions]]:
    """The options, and the servers they name. Raises `ConfigError`."""
    options = parse_options(RemoteOptions, given, "engine_kwargs")
    servers = _servers(options)
    for number, server in enumerate(servers):
        where = "" if options.base_url is not None else f".upstreams[{number}]"
        _check_base(server.base_url, f"engine_kwargs{where}.base_url")
    return options, servers


def _check_base(url: str, field: str) -> None:
    endpoint("GET", url, field=field)
    if "#" in url or url.partition("?")[0].rstrip("/").endswith("/completions"):
        raise ConfigError(
            "must end where /chat/completions begins, usually in /v1",
            field=field,
            value=masked(url),
        )


def _servers(options: RemoteOptions) -> list[UpstreamOptions]:
    if options.base_url is not None:
        if options.upstreams:
            raise ConfigError(
                "give base_url or upstreams, not both", field="engine_kwargs.upstreams"
            )
        one = UpstreamOptions(
            base_url=options.base_url, api_key_env=options.api_key_env, headers=options.headers
        )
        return [one]
    if not options.upstreams:
        raise ConfigError(
            "say where the server is, as in 'http://127.0.0.1:8000/v1'",
            field="engine_kwargs.base_url",
            value=None,
        )
    for name in ("api_key_env", "headers"):
        if getattr(options, name):
            raise ConfigError(
                "belongs to one server: give it in upstreams, so that no other gets the key",
                field=f"engine_kwargs.{name}",
            )
    return [
        parse_options(UpstreamOptions, upstream, f"engine_kwargs.upstreams[{number}]")
        for number, upstream in enumerate(options.upstreams)
    ]
