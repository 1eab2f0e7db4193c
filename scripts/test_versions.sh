#!/usr/bin/env bash
# The plain tests with other versions than those of constraints.txt: `lowest` has of each package that Penstock asks for
# the oldest that pyproject.toml allows, `newest` the latest of all. More arguments are the Pythons to use (default: all
# that are supported); one that is not here is skipped, which is said. Each run makes its environment anew, in
# VERSIONS_VENV (default: .venv-versions).
set -euo pipefail
cd "$(dirname "$0")/.."

which="${1:-}"
if [[ $which != lowest && $which != newest ]]; then
    echo "usage: $0 lowest|newest [PYTHON…]" >&2
    exit 2
fi
shift
[[ $# -gt 0 ]] || set -- 3.11 3.12 3.13

failed=0 summary=""
for version in "$@"; do
    if ! python="$(scripts/find_python.sh "$version")"; then
        summary+="skipped: $which on Python $version, which is not here"$'\n'
        continue
    fi
    venv="${VERSIONS_VENV:-.venv-versions}-$which-$version"
    "$python" -m venv --clear "$venv"
    if [[ $which == lowest ]]; then
        "$venv/bin/pip" install -q packaging
        "$venv/bin/python" scripts/lowest_versions.py dev >"$venv/lowest.txt"
        "$venv/bin/pip" install -q -c "$venv/lowest.txt" -e '.[dev]'
    else
        "$venv/bin/pip" install -q -e '.[dev]'
    fi
    told=passed
    "$venv/bin/pytest" -q || { told=failed failed=1; }
    summary+="$told: $which on Python $version"$'\n'
done
printf '\n%s' "$summary"
exit "$failed"
