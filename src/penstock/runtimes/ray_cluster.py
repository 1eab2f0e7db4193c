"""Serves an application on Ray in the foreground: on the cluster that is there, or on one of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from math import ceil
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from penstock.errors import EngineStartError
from penstock.runtimes.placement import replica_bundles
from penstock.runtimes.ray import build_application

if TYPE_CHECKING:
    from penstock.llm_config import LLMConfig
    from penstock.serve.serving_args import LLMServingArgs

APP = "penstock"
INGRESS_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster of our own: nothing big passes through it."""


def run(args: LLMServingArgs, *, on_listening: Callable[[], None] = lambda: None) -> None:
    """Serve until a SIGTERM or SIGINT; then requests under way may finish, and the application goes. A cluster that was
    started for it goes too. Raises `EngineStartError` if the ingress cannot be deployed.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    told = threading.Event()
    previous = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    own = not connect(cpus(args.llm_configs))
    try:
        # Nobody joins a cluster of our own, so its replicas need not be reached from elsewhere.
        application = build_application(args, replica_host="127.0.0.1" if own else None)
        serve.start(proxy_location="Disabled")  # clients come to the ingress itself
        try:
            serve.run_many([serve.RunTarget(application, APP)], wait_for_applications_running=False)
            _wait_for_ingress(told)
            if args.front == "replica":
                _wait_for_replica(told)
            if not told.is_set():
                on_listening()
            told.wait()
        finally:
            serve.delete(APP)
    finally:
        if own:
            serve.shutdown()
        ray.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)


def connect(cpus: int) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or the one on this machine; start one where there is none, or where
    `RAY_ADDRESS` is "local". Says whether it was there. `cpus` is what one of our own reckons to have, whatever the
    machine has: as on the local runtime, models share it.
    """
    if ray.is_initialized():
        return True
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address != "local":
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return True
        except ConnectionError:
            if address != "auto":
                raise EngineStartError(f"there is no Ray cluster at {address} (RAY_ADDRESS)") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=max(cpus, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    return False


def cpus(configs: Iterable[LLMConfig]) -> int:
    """As many as all replicas of all models reserve together."""
    total = 0.0
    for config in configs:
        fixed = config.deployment_config.num_replicas
        replicas = fixed if isinstance(fixed, int) else config.autoscaling.max_replicas
        total += replicas * sum(bundle.get("CPU", 0.0) for bundle in replica_bundles(config))
    return ceil(total)


def _wait_for_ingress(told: threading.Event) -> None:
    asked = serve.get_app_handle(APP).url.remote()
    waited = 0.0
    while not told.is_set():
        try:
            asked.result(timeout_s=0.5)
            return
        except TimeoutError:
            waited += 0.5
            if waited < INGRESS_TIMEOUT_S:
                continue
            raise EngineStartError(f"the ingress did not start in {INGRESS_TIMEOUT_S:g} s; {_message()}") from None
        except RayServeException:
            raise EngineStartError(f"the ingress could not be deployed; {_message()}") from None


def _wait_for_replica(told: threading.Event) -> None:
    while (status := serve.status().applications[APP].status) != "RUNNING" and not told.wait(0.2):
        if status == "DEPLOY_FAILED":
            raise EngineStartError(f"the replica could not be deployed; {_message()}")


def _message() -> str:
    application = serve.status().applications.get(APP)
    return "Ray says: " + " ".join((application.message if application else "nothing").split())
