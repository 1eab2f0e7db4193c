#!/usr/bin/env bash
# OpenAI's and Anthropic's own clients against `penstock serve` with vLLM: the tests of tests/serve/demo, whose server
# runs in the environment of scripts/install_vllm.sh, which says what VLLM_VERSION and VLLM_VENV are. VENV is the
# environment of the clients (default: .venv, made where it is missing).
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # else each of the many processes compiles what it imports of vLLM and torch anew

export VLLM_VENV="${VLLM_VENV:-.venv-vllm${VLLM_VERSION:+-$VLLM_VERSION}}"
scripts/install_vllm.sh
venv="${VENV:-.venv}"
if [[ ! -x $venv/bin/pytest ]]; then
    python3 -m venv "$venv" && "$venv/bin/pip" install -q -c constraints.txt -e '.[dev]'
fi
export PENSTOCK_TEST_ENGINE=vllm PENSTOCK_TEST_PYTHON="$VLLM_VENV/bin/python"
exec "$venv/bin/pytest" -m slow tests/serve/demo/test_demo_openai.py tests/serve/demo/test_demo_anthropic.py "$@"
