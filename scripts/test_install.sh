#!/usr/bin/env bash
# What a user gets: a plain install, its weight, and the demo. PLAIN_VENV is made anew (default: .venv-plain).
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${PLAIN_VENV:-.venv-plain}"
python3 -m venv --clear "$venv"
"$venv/bin/pip" install -q -c constraints.txt .

heavy="$("$venv/bin/pip" list --format=freeze | grep -iE '^(torch|transformers|ray|vllm)==' || true)"
if [[ -n $heavy ]]; then
    echo "a plain install brings heavy packages: $heavy" >&2
    exit 1
fi

"$venv/bin/penstock" demo

megabytes="$(du -sm "$venv" | cut -f1)"
echo "a plain install takes $megabytes MB (at most 520)"
[[ $megabytes -le 520 ]]
