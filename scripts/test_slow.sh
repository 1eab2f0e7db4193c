#!/usr/bin/env bash
# Tests that take their time or load a real model. VENV is the environment to use (default: .venv).
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
"${VENV:-.venv}/bin/pytest" -m slow "$@" || status=$?
if [[ $status -eq 5 ]]; then # pytest's "no tests collected"
    echo "skipped: no test is marked slow"
    exit 0
fi
exit "$status"
