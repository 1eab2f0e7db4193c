#!/usr/bin/env bash
# Builds the wheel and the source distribution into build/dist, and installs each in a clean environment: the wheel on
# every supported Python that is here, the source distribution on the first. Arguments are the Pythons (default: all).
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -gt 0 ]] || set -- 3.11 3.12 3.13

rm -rf build/dist
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/build"
"$work/build/bin/pip" install -q -c constraints.txt hatchling
"$work/build/bin/hatchling" build -d build/dist >/dev/null

check() { # PYTHON PACKAGE: what a user of it gets
    "$1" -m venv --clear "$work/venv"
    "$work/venv/bin/pip" install -q -c constraints.txt "$2"
    (
        cd "$work"
        printf '{"ticket": "Where is my parcel?"}\n' >rows.jsonl
        venv/bin/penstock run rows.jsonl -o - --prompt '{ticket}' --max-tokens 60 -q --fresh
        venv/bin/python - <<'PYTHON'
from importlib.metadata import metadata
from importlib.resources import files

assert (files("penstock") / "py.typed").is_file(), "py.typed is missing"
assert (files("penstock") / "demo" / "model").is_dir(), "the demo model is missing"
assert "Typing :: Typed" in metadata("penstock").get_all("Classifier")
PYTHON
    ) || return
    "$work/venv/bin/pip" check
}

tried="" kinds=(build/dist/*.whl build/dist/*.tar.gz)
for version in "$@"; do
    if ! python="$(scripts/find_python.sh "$version")"; then
        echo "skipped: Python $version is not here"
        continue
    fi
    for package in "${kinds[@]}"; do
        check "$python" "$package"
    done
    kinds=(build/dist/*.whl)
    tried+=" $version"
done
[[ -n $tried ]]
echo "the packages install and run on Python$tried"
