#!/usr/bin/env bash
# Prints the path of the interpreter of a Python version (3.12), from PATH or pyenv; exits with 1 where there is none.
set -euo pipefail

for python in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    # A shim of pyenv's may stand there for a version that is not chosen.
    "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null || continue
    echo "$python"
    exit 0
done
exit 1
