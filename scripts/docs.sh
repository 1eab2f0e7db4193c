#!/usr/bin/env bash
# Builds the site of docs/ into build/site; a broken link, a page outside the navigation or a docstring that cannot be
# shown fails. DOCS_VENV is the environment (default: .venv-docs), made if it is not there. `scripts/docs.sh serve`
# shows the site at http://127.0.0.1:8000 and follows changes.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${DOCS_VENV:-.venv-docs}"
if [[ ! -x $venv/bin/mkdocs ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -c constraints.txt mkdocs-material 'mkdocstrings[python]'
fi
export NO_MKDOCS_2_WARNING=true DISABLE_MKDOCS_2_WARNING=true
if [[ ${1:-build} == serve ]]; then
    exec "$venv/bin/mkdocs" serve
fi
"$venv/bin/mkdocs" build --strict --clean
echo "the site is in build/site"
