#!/usr/bin/env bash
# Tests with real vLLM on the CPU, in an environment of their own: scripts/install_vllm.sh makes it, and says what
# VLLM_VERSION and VLLM_VENV are. Arguments go to pytest, and choose the files; without any, all such tests run.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # else each of the many processes compiles what it imports of vLLM and torch anew

export VLLM_VENV="${VLLM_VENV:-.venv-vllm${VLLM_VERSION:+-$VLLM_VERSION}}"
scripts/install_vllm.sh
if [[ $# -eq 0 ]]; then # only the files that hold such tests: others need packages that this environment lacks
    mapfile -t files < <(grep -rlE 'mark\.vllm\b' --include='test_*.py' tests)
    set -- "${files[@]}"
fi
exec "$VLLM_VENV/bin/python" -m pytest -m vllm -W ignore "$@" # vLLM's warnings are not ours
