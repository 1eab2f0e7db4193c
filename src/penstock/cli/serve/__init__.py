"""`penstock serve`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from penstock import env
from penstock.cli.options import FiniteRange, WholeRange, json_object
from penstock.cli.process import interruptible
from penstock.cli.serve import vllm_flags
from penstock.cli.serve.vllm_flags import (
    ENGINE_OPTIONS,
    VllmCommand,
    engine_kwargs,
    engine_options,
)
from penstock.errors import ConfigError
from penstock.observability import configure_logging, enable_tracing, say

if TYPE_CHECKING:
    from penstock.cli.serve.keys import KeyFiles
    from penstock.serve.config.serving_args import LLMServingArgs
    from penstock.serve.config.settings import HttpSettings
    from penstock.serve.tls import Tls

_log = logging.getLogger("penstock.serve")
DEFAULT_PORT = 8000


@click.command(
    cls=VllmCommand,
    short_help="Serve models through an OpenAI-compatible API.",
    epilog="Many flags of `vllm serve` are taken too: docs/serving.md lists them.",
)
@click.argument("model", metavar="MODEL|CONFIG.yaml", default="demo")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 127.0.0.1 is reachable from this machine only.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="0 takes a free port.",
)
@click.option("--engine", help="The engine of MODEL.  [default: openvino]")
@click.option(
    "--engine-kwargs", metavar="JSON", help="Options of the engine of MODEL, as a JSON object."
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="The same request gets the same answer whatever runs beside it. Costs speed.",
)
@click.option("--name", help="Name of MODEL in requests.  [default: its last path component]")
@click.option(
    "--served-model-name",
    "names",
    multiple=True,
    help="The same as --name; several are allowed, and answers have the first.",
)
@click.option(
    "--lora-modules",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter for MODEL; several are allowed.",
)
@click.option(
    "--api-key", "keys", multiple=True, help="A key; others on the machine see it: use a file."
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False),
    help="Keys, one a line; also PENSTOCK_API_KEYS.",
)
@click.option(
    "--admin-key-file",
    type=click.Path(dir_okay=False),
    help="Keys for --dev; also PENSTOCK_ADMIN_KEYS.",
)
@click.option(
    "--dev",
    is_flag=True,
    help="Enable the control routes: /sleep, /pause, /collective_rpc and so on.",
)
@click.option(
    "--engine-app",
    metavar="PATH",
    help="Mount the engine's own HTTP application (vLLM's) under PATH, for admins.",
)
@click.option("--vllm-metrics", is_flag=True, help="/metrics has vLLM's names (vllm:…) too.")
@click.option("--root-path", default="", help="The path under which a proxy shows the server.")
@click.option("--uds", metavar="PATH", help="Listen on a Unix domain socket instead of a port.")
@click.option("--ssl-certfile", type=click.Path(dir_okay=False), help="Certificate: HTTPS.")
@click.option("--ssl-keyfile", type=click.Path(dir_okay=False), help="The certificate's key.")
@click.option("--ssl-ca-certs", type=click.Path(dir_okay=False), hidden=True)
@click.option("--ssl-cert-reqs", type=click.IntRange(0, 2), default=0, hidden=True)
@click.option("--allowed-origins", hidden=True)
@click.option(
    "--replicas",
    type=WholeRange(1),
    help="Replicas of MODEL; here they part the CPU cores among them.  [default: 1]",
)
@engine_options
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="A web origin that may send requests; can be repeated.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="A host name that requests to a keyless server may use; can be repeated.",
)
@click.option(
    "--max-body-mb",
    type=FiniteRange(0, min_open=True),
    help="Largest request body.  [default: 32]",
)
@click.option("--max-tokens", type=WholeRange(1), help="Most tokens of any answer.")
@click.option(
    "--max-prompt-chars", type=WholeRange(1), help="Longest prompt.  [default: 4,000,000]"
)
@click.option(
    "--max-choices",
    type=WholeRange(1),
    help="Most answers to a request (n × prompts).  [default: 128]",
)
@click.option("--max-inflight", type=WholeRange(1), help="Most requests at once; others get a 429.")
@click.option(
    "--head-timeout",
    "head_timeout_s",
    type=FiniteRange(0, min_open=True),
    help="Seconds for a request's head.  [default: 10]",
)
@click.option(
    "--body-timeout",
    "body_timeout_s",
    type=FiniteRange(0, min_open=True),
    help="Seconds for a request's body, and one more for each 8 KiB.  [default: 30]",
)
@click.option(
    "--write-timeout",
    "write_timeout_s",
    type=FiniteRange(0, min_open=True),
    help="Seconds in which a client must read some of its answer.  [default: 60]",
)
@click.option(
    "--drain-timeout",
    "drain_timeout_s",
    type=FiniteRange(0),
    help=(
        "Seconds that SIGTERM leaves to requests.  [default: the models'"
        " graceful_shutdown_timeout_s, 20]"
    ),
)
@click.option(
    "--memory-budget-gb",
    type=FiniteRange(0, min_open=True),
    help=(
        "Limit for the estimated total size of loaded models; idle models are evicted."
        "  [default: no limit]"
    ),
)
@click.option(
    "--trust-request-chat-template", is_flag=True, help="Accept chat templates in requests."
)
@click.option(
    "--store",
    "store_path",
    type=click.Path(dir_okay=False),
    help="Store responses and conversations in this SQLite file.  [default: store nothing]",
)
@click.option(
    "--store-days",
    type=FiniteRange(0, 100_000, min_open=True),
    help="Days until what nobody used is deleted from the store.  [default: 30]",
)
@click.option(
    "--store-max-mb",
    type=FiniteRange(0, min_open=True),
    help="Most content in the store; the least recently used is evicted.  [default: 1024]",
)
@click.option("--no-console", is_flag=True, help="Leave out the console at /console.")
@click.option(
    "--batch-dir",
    type=click.Path(file_okay=False),
    help="Folder of files and batches (/v1/files, /v1/batches).  [default: in the cache folder]",
)
@click.option(
    "--batch-database",
    metavar="URL",
    help="PostgreSQL database of the batches, for several ingresses.  [default: SQLite]",
)
@click.option(
    "--batch-files", metavar="URL", help="Where files are, for fsspec.  [default: --batch-dir]"
)
@click.option("--no-batches", is_flag=True, help="Leave out the batch and files APIs.")
@click.option(
    "--log-format", type=click.Choice(["plain", "json"]), default="plain", show_default=True
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info"
)
@click.option(
    "--tracing", is_flag=True, help="Send spans to an OpenTelemetry collector (OTEL_* variables)."
)
@click.option("--runtime", type=click.Choice(["local", "ray"]), default="local", show_default=True)
def serve(
    model: str,
    host: str,
    port: int,
    engine: str | None,
    engine_kwargs: str | None,
    deterministic: bool,
    name: str | None,
    names: tuple[str, ...],
    lora_modules: tuple[str, ...],
    uds: str | None,
    ssl_certfile: str | None,
    ssl_keyfile: str | None,
    ssl_ca_certs: str | None,
    ssl_cert_reqs: int,
    log_format: str,
    log_level: str,
    tracing: bool,
    runtime: str,
    memory_budget_gb: float | None,
    **options: Any,
) -> None:
    """Serve MODEL, or the models of a configuration file, through an OpenAI-compatible API.

    MODEL is 'demo', a model directory or file, or a hub id.
    """
    import asyncio

    from penstock.cli.serve.keys import KeyFiles
    from penstock.cli.serve.settings import settings_of
    from penstock.serve.http_server import listen, listen_at
    from penstock.serve.tls import Tls

    tls = None
    if ssl_certfile is not None:
        tls = Tls(
            certfile=ssl_certfile,
            keyfile=ssl_keyfile,
            ca_certs=ssl_ca_certs,
            cert_reqs=ssl_cert_reqs,
        )
    elif ssl_keyfile is not None or ssl_ca_certs is not None or ssl_cert_reqs:
        raise ConfigError("is missing", field="--ssl-certfile")
    if runtime == "ray":
        local = {
            "--engine-app": (options["engine_app"], "The engines run in other processes."),
            "--uds": (uds, "Put a proxy in front of the cluster."),
            "--ssl-certfile": (tls, "Put a proxy in front of the cluster."),
            "--memory-budget-gb": (
                memory_budget_gb,
                "On Ray, ray_actor_options.memory says what a replica takes.",
            ),
        }
        for field, (value, hint) in local.items():
            if value is not None:
                raise ConfigError("is for the local runtime", field=field, hint=hint)
    if uds is not None:
        context = click.get_current_context()
        for option in ("host", "port"):
            if context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
                raise ConfigError("is not listened on beside --uds", field=f"--{option}")
    configure_logging("json" if log_format == "json" else "plain", log_level)
    if tracing:
        enable_tracing()
    given = _Given(engine, engine_kwargs, deterministic, (*filter(None, (name,)), *names))
    args = _args(model, given, options, lora_modules, runtime)
    settings = settings_of(options, args, runtime)
    here = uds is not None or host in ("127.0.0.1", "::1", "localhost")
    if not here and not settings.api_keys:
        say(f"Warning: anybody who reaches {host}:{port} may use it; --api-key-file sets keys.")
    if not settings.api_keys and os.environ.get(env.CLIENT_KEY):
        say(
            f"Warning: {env.CLIENT_KEY} is the key that clients send. The server has none:"
            " PENSTOCK_API_KEYS or --api-key-file sets its keys."
        )
    budget = None if memory_budget_gb is None else int(memory_budget_gb * 2**30)
    listening = listen(host, port) if uds is None else listen_at(uds)
    try:
        with interruptible():
            if runtime == "ray":
                _serve_on_ray(args, settings, listening)
            else:
                keys = KeyFiles(options, args.http)
                asyncio.run(_serve(args, settings, listening, keys, budget, tls))
    finally:
        if uds is not None:
            Path(uds).unlink(missing_ok=True)


async def _serve(
    args: LLMServingArgs,
    settings: HttpSettings,
    listening: Any,
    keys: KeyFiles,
    budget: int | None,
    tls: Tls | None,
) -> None:
    import asyncio

    from penstock.engines.side_by_side import end_all
    from penstock.garbage import collect_seldom_from_now
    from penstock.serve.api.ingress import made_ingress
    from penstock.serve.http_server import HttpServer, address
    from penstock.serve.models.local import build_local_handles
    from penstock.service.routes import add_batches

    handles = build_local_handles(args.llm_configs, memory_budget_bytes=budget)
    app = made_ingress(
        dict(args.ingress_cls_config),
        handles,
        args.llm_configs,
        lora_paths=args.lora_paths,
        settings=settings,
    )
    url = address(listening, tls=tls is not None)
    batches = add_batches(app)
    collect_seldom_from_now()
    following = asyncio.create_task(keys.follow(app.ingress))
    try:
        if batches is not None:
            await batches.start()
        await HttpServer(app, listening, tls=tls).run(
            handles.values(),
            on_listening=lambda: _announce(
                url, next(iter(handles)), settings, secure=tls is not None
            ),
        )
    finally:
        await end_all([following])
        if batches is not None:
            batches.close()


def _serve_on_ray(args: LLMServingArgs, settings: HttpSettings, listening: Any) -> None:
    from msgspec import structs

    from penstock import lazy
    from penstock.serve.http_server import address

    cluster = lazy.require("penstock.ray.cluster", needed_by="The Ray runtime")
    url = address(listening)
    listening.close()  # it has proven the port free; the ingress takes the port
    args = structs.replace(args, listen=url.removeprefix("http://"), http=settings)
    cluster.run(args, on_listening=lambda: _announce(url, args.llm_configs[0].model_id, settings))


def _announce(url: str, model: str, settings: HttpSettings, *, secure: bool = False) -> None:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    key = ' -H "authorization: Bearer $KEY"' if settings.api_keys else ""
    shown = url
    if url.startswith("unix:"):
        key, url = (
            f"{key} --unix-socket {url.removeprefix('unix:')}",
            f"http{'s' * secure}://localhost",
        )
    console = f", console: {url}/console" if settings.console else ""
    click.echo(f"Listening on {shown} (API: {url}/v1, docs: {url}/docs{console}). Try:")
    click.echo(
        f"  curl {url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'"
    )


class _Given(NamedTuple):
    """What the command line says of MODEL."""

    engine: str | None
    engine_kwargs: str | None
    deterministic: bool
    names: tuple[str, ...]


def _args(
    model: str,
    given: _Given,
    flags: dict[str, Any],
    lora_modules: tuple[str, ...],
    runtime: str,
) -> LLMServingArgs:
    from penstock.serve.config.serving_args import LLMServingArgs, load_serving_args

    if Path(model).suffix in (".yaml", ".yml"):
        typed = [name for name in ENGINE_OPTIONS if flags.get(name) is not None]
        if any(given) or lora_modules or typed or flags["replicas"]:
            raise ConfigError(
                "--engine, --engine-kwargs, --deterministic, --name, --replicas and other options"
                " of a model are for a MODEL; a file says them itself"
            )
        args = load_serving_args(model)
        if runtime == "local":
            for name in ("ingress_deployment_config", "listen"):
                if getattr(args, name):
                    _log.warning(
                        "%s: the local runtime has an ingress of its own, and passes over %s",
                        model,
                        name,
                    )
        return args
    first, *others = given.names or (Path(model).name or model,)
    options = json_object(given.engine_kwargs, "--engine-kwargs") or {}
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": first, "model_source": model, "aliases": others},
        "engine_kwargs": {**engine_kwargs((given.engine or "openvino").lower(), flags), **options},
        "deterministic": given.deterministic,
        **({"llm_engine": given.engine} if given.engine else {}),
    }
    if flags["replicas"]:
        config["deployment_config"] = {"num_replicas": flags["replicas"]}
    if lora_modules:
        config["lora_config"] = {"adapters": vllm_flags.lora_modules(lora_modules)}
    return LLMServingArgs.from_dict({"llm_configs": [config]})
