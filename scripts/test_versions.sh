#!/usr/bin/env bash
# The plain tests with other versions than those of constraints.txt: `lowest` has of each package that Penstock asks for
# the oldest that pyproject.toml allows, `newest` the latest of all. More arguments are the Pythons to use (default: all
# that are supported). One that is not here is skipped, and one for which there are no such packages fails; the last
# lines say so. Each run makes its environment anew, in VERSIONS_VENV (default: .venv-versions).
set -euo pipefail
cd "$(dirname "$0")/.."

which="${1:-}"
if [[ $which != lowest && $which != newest ]]; then
    echo "usage: $0 lowest|newest [PYTHON…]" >&2
    exit 2
fi
shift
[[ $# -gt 0 ]] || set -- 3.11 3.12 3.13

# Nothing is built: what has no wheel for a Python cannot be had there.
install() { # PYTHON VENV
    "$1" -m venv --clear "$2" || return
    local pins=()
    if [[ $which == lowest ]]; then
        "$2/bin/pip" install -q packaging && "$2/bin/python" scripts/lowest_versions.py dev >"$2/lowest.txt" || return
        pins=(-c "$2/lowest.txt")
    fi
    "$2/bin/pip" install -q --only-binary :all: "${pins[@]}" -e '.[dev]'
}

failed=0 summary=""
for version in "$@"; do
    if ! python="$(scripts/find_python.sh "$version")"; then
        summary+="skipped: $which on Python $version, which is not here"$'\n'
        continue
    fi
    venv="${VERSIONS_VENV:-.venv-versions}-$which-$version"
    if ! install "$python" "$venv"; then
        told="failed: no packages for" failed=1
    elif ! "$venv/bin/pytest" -q; then
        told=failed: failed=1
    else
        told=passed:
    fi
    summary+="$told $which on Python $version"$'\n'
done
printf '\n%s' "$summary"
exit "$failed"
