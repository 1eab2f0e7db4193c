#!/usr/bin/env bash
# Kills, damaged state, damaged files, random requests, disconnects, bombs: what docs/reliability.md promises, put to the
# test for about 20 minutes. Seeded and bounded; the figures are printed as a table. VENV is the environment to use (default: .venv).
# Arguments go to tools/campaign/run.py: --seed N, --minutes N, --only NAME, --write docs/reliability.md.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${VENV:-.venv}/bin/python" tools/campaign/run.py "$@"
