#!/usr/bin/env bash
# Tests on a real Ray, in an environment of their own. RAY_VENV is the one to make or reuse (default: .venv-ray).
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${RAY_VENV:-.venv-ray}"
python3 -m venv "$venv"
"$venv/bin/pip" install -q -c constraints.txt -e '.[ray,dev]'
exec "$venv/bin/pytest" -m ray -o faulthandler_timeout=240 "$@"
