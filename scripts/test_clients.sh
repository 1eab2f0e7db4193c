#!/usr/bin/env bash
# Clients of other projects against `penstock serve`: makes their environments and runs tests/clients. The first
# argument says which: `change` (default) those that a change waits for, on the demo model; `all` all of them, on a real
# model as well. The others are pytest's. VENV is the usual environment (default: .venv), CLIENTS the folder of the
# clients' (default: .clients). Clients that cannot be had are skipped, and named.
set -euo pipefail
cd "$(dirname "$0")/.."

which="${1:-change}"
shift || true
scripts/clients/install.sh "$which" || echo "not all clients can be had" >&2
marked=clients
if [[ $which == all ]]; then
    PYTHON="${VENV:-.venv}/bin/python" scripts/fetch_models.sh
    marked="clients or clients_nightly"
fi
exec "${VENV:-.venv}/bin/pytest" -m "$marked" -rs tests/clients "$@"
