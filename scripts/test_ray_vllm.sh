#!/usr/bin/env bash
# Tests of vLLM on a real Ray, in an environment that has both: scripts/install_vllm.sh makes it, and says what
# VLLM_VERSION is. RAY_VLLM_VENV is the one to make or reuse (default: .venv-ray-vllm).
set -euo pipefail
cd "$(dirname "$0")/.."

export VLLM_VENV="${RAY_VLLM_VENV:-.venv-ray-vllm}"
scripts/install_vllm.sh
"$VLLM_VENV/bin/pip" install -q --no-compile 'ray[serve]>=2.60' psutil pytest pytest-asyncio
exec "$VLLM_VENV/bin/python" -m pytest -m ray -W ignore tests/runtimes/test_ray_vllm.py "$@"
