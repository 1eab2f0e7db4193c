"""An application that this process runs in the foreground, on an existing Ray cluster or one of its
own.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.util
from msgspec.structs import replace
from ray import serve
from ray._private import state
from ray.serve.exceptions import RayServeException

from penstock.errors import EngineStartError
from penstock.ray.application import build_application
from penstock.serve.config.placement import cpus
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.http_server import ending_signals

APP_PREFIX = "penstock-serve-"
INGRESS_TIMEOUT_S = 120.0
KNOCK_TIMEOUT_S = 10.0
NODE_SHARE = 0.001
"""Amount of a node's own resource that pins a process to this node."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Size of the object store in a cluster of our own: nothing large passes through it."""


def run(args: LLMServingArgs, *, on_listening: Callable[[], None] = lambda: None) -> None:
    """Serve until one of `ending_signals`, then drain and delete the application, and the cluster
    if this call started it. Raises `EngineStartError` if the ingress cannot be deployed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stopping = threading.Event()
    previous = _take_signals(stopping)
    own = not connect(cpus(args.llm_configs))
    # Ray has replaced our handler by one that would end everything at once.
    _take_signals(stopping)
    try:
        # No other machine joins a cluster of our own, so its replicas listen on loopback only.
        application = build_application(here(args), replica_host="127.0.0.1" if own else None)
        serve.start(proxy_location="Disabled")  # clients connect to the ingress directly
        app = new_application(APP_PREFIX)
        try:
            # Without a route: it might belong to another application behind Ray's proxy.
            serve.run_many(
                [serve.RunTarget(application, app, route_prefix=None)],
                wait_for_applications_running=False,
            )
            _wait_for_ingress(app, stopping)
            if args.front == "replica":
                _wait_for_replica(app, stopping)
            if not stopping.is_set():
                on_listening()
            stopping.wait()
        finally:
            serve.delete(app)
    finally:
        if own:
            serve.shutdown()
        ray.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _take_signals(stopping: threading.Event) -> dict[signal.Signals, Any]:
    """Let `ending_signals` set the event. Returns the previous handlers."""
    return {number: signal.signal(number, lambda *_: stopping.set()) for number in ending_signals()}


def connect(cpus: int) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or the one on this machine; start one if there is
    none, or if `RAY_ADDRESS` is "local". Returns whether it existed.

    A new cluster claims at least `cpus` CPUs, however many the machine has: models share them, as
    on the local runtime.
    """
    if ray.is_initialized():
        return True
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address.startswith("ray://"):
        raise EngineStartError(
            f"Ray Client ({address}) cannot serve: run this on a machine of the cluster, with"
            " RAY_ADDRESS=HOST:6379"
        )
    if address != "local":
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return True
        except OSError:
            if address != "auto":
                raise EngineStartError(
                    f"there is no Ray cluster at {address} (RAY_ADDRESS)"
                ) from None
        except (
            RuntimeError,
            ValueError,
        ) as error:  # a cluster of another version, or one that rejects us
            why = " ".join(str(error).split())
            raise EngineStartError(
                f"the Ray cluster at {address} (RAY_ADDRESS) cannot be joined: {why}"
            ) from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default of 15 suits background work; engines would inherit it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A terminal that closes sends SIGHUP to all of the process group, and this process needs its
    # cluster to end in order. The cluster inherits the mask; Ray itself adds SIGINT to it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return False


def _knock(address: str) -> None:
    """Raise `OSError` if no server listens at HOST:PORT: Ray itself would wait for long."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_TIMEOUT_S).close()


def new_application(prefix: str) -> str:
    """A unique name for an application of this process. Deletes the applications with that prefix
    whose process was killed.
    """
    dead = {job["JobID"] for job in state.jobs() if job["IsDead"]}
    for name in serve.status().applications:
        if name.startswith(prefix) and name.removeprefix(prefix).partition("-")[0] in dead:
            serve.delete(name)
    return f"{prefix}{ray.get_runtime_context().get_job_id()}-{secrets.token_hex(4)}"


def here(args: LLMServingArgs) -> LLMServingArgs:
    """Pin the deployment that listens for clients to this machine, as its address is advertised."""
    node = {f"node:{ray.util.get_node_ip_address()}": NODE_SHARE}
    if args.front == "replica":
        (config,) = args.llm_configs
        deployment = config.deployment_config
        deployment = replace(
            deployment, ray_actor_options=_with(deployment.ray_actor_options, node)
        )
        return replace(args, llm_configs=[replace(config, deployment_config=deployment)])
    ingress = args.ingress_deployment_config
    actor = _with(ingress.get("ray_actor_options") or {"num_cpus": 0}, node)
    return replace(args, ingress_deployment_config={**ingress, "ray_actor_options": actor})


def _with(actor_options: Mapping[str, Any], resources: Mapping[str, float]) -> dict[str, Any]:
    return {**actor_options, "resources": {**(actor_options.get("resources") or {}), **resources}}


def _wait_for_ingress(app: str, stopping: threading.Event) -> None:
    asked = serve.get_app_handle(app).url.remote()
    waited = 0.0
    while not stopping.is_set():
        try:
            asked.result(timeout_s=0.5)
            return
        except TimeoutError:
            waited += 0.5
            if waited < INGRESS_TIMEOUT_S:
                continue
            raise EngineStartError(
                f"the ingress did not start in {INGRESS_TIMEOUT_S:g} s; {_message(app)}"
            ) from None
        except RayServeException:
            raise EngineStartError(f"the ingress could not be deployed; {_message(app)}") from None


def _wait_for_replica(app: str, stopping: threading.Event) -> None:
    while (status := serve.status().applications[app].status) != "RUNNING" and not stopping.wait(
        0.2
    ):
        if status == "DEPLOY_FAILED":
            raise EngineStartError(f"the replica could not be deployed; {_message(app)}")


def _message(app: str) -> str:
    application = serve.status().applications.get(app)
    return "Ray says: " + " ".join((application.message if application else "nothing").split())
