"""A Ray cluster for the tests of a module, which start it and stop it."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray import serve

PATIENCE_S = 240


@contextmanager
def own_cluster(*, proxy_port: int | None = None, num_gpus: int = 0) -> Iterator[str]:
    """A cluster of this machine with Ray Serve on it, and with Ray's proxy where that has a port;
    gives its address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    about = ray.init(
        address="local",
        num_cpus=16,  # as Ray counts them: a replica reserves two
        num_gpus=num_gpus,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        if proxy_port is None:
            serve.start(proxy_location="Disabled")
        else:
            serve.start(
                proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": proxy_port}
            )
        yield about.address_info["gcs_address"]
    finally:
        serve.shutdown()
        ray.shutdown()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def until(so: Callable[[], bool]) -> None:
    """Wait until something is so, which nobody announces."""
    give_up = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.1)
