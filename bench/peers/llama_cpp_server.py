"""llama.cpp's server in the environment of `install.sh llama_cpp`: MODEL PORT SLOTS."""

from __future__ import annotations

import sys
import threading
from typing import Any


def main() -> None:
    """Serve until the process is stopped."""
    import xllamacpp  # type: ignore[import-not-found]

    model, port, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    params: Any = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = 3072 * slots  # of all slots together
    params.cont_batching = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
