#!/usr/bin/env bash
# Tests of model conversion, in an environment of their own: they bring torch, which the package must not need.
# VENV is the usual environment (default: .venv), CONVERT_VENV the one to make or reuse (default: .venv-convert).
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
"${VENV:-.venv}/bin/pytest" -m convert --collect-only -q >/dev/null || status=$?
if [[ $status -eq 5 ]]; then # pytest's "no tests collected"
    echo "skipped: no test is marked convert"
    exit 0
fi

venv="${CONVERT_VENV:-.venv-convert}"
python3 -m venv "$venv"
"$venv/bin/pip" install -q -c constraints.txt -e '.[convert,dev]'
PYTHON="$venv/bin/python" scripts/fetch_models.sh
exec "$venv/bin/pytest" -m convert -rs "$@"
