#!/usr/bin/env bash
# Tests of vLLM on a real Ray, in an environment that has both: scripts/install_vllm.sh makes it, and says what
# VLLM_VERSION and VLLM_EXTRAS are ("nixl": without it, tests that move KV caches are skipped). RAY_VLLM_VENV is the one
# to make or reuse (default: .venv-ray-vllm). Arguments go to pytest, and choose the files; without any, all such run.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # else each of the many processes compiles what it imports of vLLM and torch anew

export VLLM_VENV="${RAY_VLLM_VENV:-.venv-ray-vllm}"
scripts/install_vllm.sh
# Compiled, since Ray gives its agents little time to start.
"$VLLM_VENV/bin/pip" install -q 'ray[data,serve]>=2.60' psutil pytest pytest-asyncio
if [[ $# -eq 0 ]]; then # only the files that hold such tests: others need packages that this environment lacks
    mapfile -t files < <(grep -rlE 'mark\.ray\b' --include='test_*.py' tests | xargs grep -lE 'mark\.vllm\b')
    set -- "${files[@]}"
fi
exec "$VLLM_VENV/bin/python" -m pytest -m 'ray and vllm' -W ignore "$@" # vLLM's warnings are not ours
