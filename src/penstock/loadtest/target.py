"""What is measured: a server that runs, or one started for the measurement."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from penstock.engines.process import die_with_parent, modules_of_this, python
from penstock.errors import EngineStartError
from penstock.http.standard import opened

NULL = "null"
_KEYS = ("PENSTOCK_API_KEYS", "PENSTOCK_ADMIN_KEYS")
_STOP_S = 30.0


@contextlib.contextmanager
def address_of(target: str, serve_options: Sequence[str] = ()) -> Iterator[str]:
    """The address of a target: an address as it is; a server of its own for "null" or a model,
    which ends with the context. `serve_options` are those of `penstock serve`. The server of a
    model needs no key, and leaves the user's batches alone.
    """
    if is_address(target):
        yield target
        return
    if target == NULL:
        argv = ["-m", "penstock.loadtest.null"]
    else:
        argv = ["-m", "penstock.cli", "serve", target, "--port", "0", *serve_options]
        argv += ["--no-batches", "--log-level", "warning"]
    with subprocess.Popen(
        python(*argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in modules_of_this().items() if name not in _KEYS},
        preexec_fn=partial(die_with_parent, os.getpid()),
    ) as process:
        try:
            yield _listening(process, target)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def is_address(target: str) -> bool:
    """Whether a target is the address of a server: it has a scheme, or a port and is no file."""
    if "://" in target:
        return True
    host, _, port = target.partition("/")[0].rpartition(":")
    return bool(host) and port.isdecimal() and not Path(target).exists()


def _listening(process: subprocess.Popen[str], target: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdecimal():
            return f"http://127.0.0.1:{line.strip()}"
        if line.startswith("Listening on "):
            url = line.split()[2]
            while process.poll() is None:  # its model still loads, or cannot be loaded
                with contextlib.suppress(OSError), opened(f"{url}/ready", _STOP_S):
                    return url
                time.sleep(0.05)
    raise EngineStartError(f"{target} cannot be served: see above")
