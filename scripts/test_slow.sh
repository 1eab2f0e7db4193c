#!/usr/bin/env bash
# Tests that take their time or load a real model; with MARKED=nightly those of .ci/nightly. VENV is the environment to
# use (default: .venv). Real models come from scripts/fetch_models.sh, which says where they are kept; tests for which
# there is none are skipped, and named.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${VENV:-.venv}/bin/python" scripts/fetch_models.sh

status=0
"${VENV:-.venv}/bin/pytest" -m "${MARKED:-slow and not nightly}" -rs "$@" || status=$?
if [[ $status -eq 5 ]]; then # pytest's "no tests collected"
    echo "skipped: no test is marked slow"
    exit 0
fi
exit "$status"
