#!/usr/bin/env bash
# Tests on a real Ray, in an environment of their own. RAY_VERSION is another version than constraints.txt pins, RAY_VENV
# the environment to make or reuse (default: .venv-ray, or .venv-ray-VERSION where a version is given).
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${RAY_VENV:-.venv-ray${RAY_VERSION:+-$RAY_VERSION}}"
python3 -m venv "$venv"
"$venv/bin/pip" install -q -c constraints.txt -e '.[ray,dev]'
if [[ -n ${RAY_VERSION:-} ]]; then "$venv/bin/pip" install -q "ray[data,serve]==$RAY_VERSION"; fi
exec "$venv/bin/pytest" -m ray -o faulthandler_timeout=240 "$@"
