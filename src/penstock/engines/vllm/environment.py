"""What vLLM reads from the process it runs in: environment variables, the signal mask, the main
module.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker

from penstock.engines.vllm.guard import MARK
from penstock.engines.vllm.options import VLLMOptions

_DEFAULTS: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody unless asked for
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout may be a job's output
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads
}
BATCH_INVARIANT: Mapping[str, str] = {"VLLM_BATCH_INVARIANT": "1"}
"""Kernels whose results do not depend on the batch. vLLM reads it in its own processes and in this
one.
"""
_starting = threading.Lock()


def set_defaults(options: VLLMOptions) -> None:
    """Set what vLLM would otherwise choose differently, where the user has not. Before vLLM is
    imported.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if options.cpu and options.engine.get("enforce_eager"):
        # Log probabilities would compile for seconds all the same.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@contextmanager
def processes_start(
    mark: str, folder: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Processes started inside carry `mark`, keep their sockets in `folder`, have the variables of
    `environment`, and take no notice of Ctrl-C.

    A Ctrl-C goes to the whole process group, and vLLM's would abort what this process still wants
    to finish. One engine starts at a time, since all this is the process's own.
    """
    with _starting:
        # It serves this process for longer, so it must not carry the mark.
        resource_tracker.ensure_running()
        given = {**(environment or {}), MARK: mark, "VLLM_RPC_BASE_PATH": folder}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _without_main_module():
                yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Child processes do not import the user's script, so it needs no `if __name__ ==
    "__main__"`.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file
