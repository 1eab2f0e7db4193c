#!/usr/bin/env bash
# An environment of its own for each client that tests/clients drives: .clients/NAME.
#
#   scripts/clients/install.sh change|all|NAME…           makes what is missing or pinned anew
#   scripts/clients/install.sh --update change|all|NAME…  pins the newest versions first
#
# Those that a change waits for (`change`) are pinned here, the others in nightly/. A Python client is NAME.txt, with
# every package pinned; its first line says what was asked for. One for Node.js is NAME/ with package.json and its lock
# file, which names no registry. CLIENTS moves the folder .clients; PYTHON is the interpreter (3.11 or newer). uv makes
# the environments, which share what they have in common; where there is none, pip brings it.
set -euo pipefail
cd "$(dirname "$0")/../.."

pinned=scripts/clients
clients="${CLIENTS:-.clients}"
update=
if [[ ${1:-} == --update ]]; then update=1 && shift; fi

names_in() { # names_in FOLDER…: the clients that are pinned there
    local folder
    for folder; do
        basename -a -s .txt "$folder"/*.txt
        dirname "$folder"/*/package.json | xargs -n 1 basename
    done
}

names=("$@")
case "${1:-}" in
change) mapfile -t names < <(names_in "$pinned") ;;
all) mapfile -t names < <(names_in "$pinned" "$pinned/nightly") ;;
esac
if [[ ${#names[@]} == 0 ]]; then
    echo "which clients? change, all, or of: $(names_in "$pinned" "$pinned/nightly" | xargs)" >&2
    exit 2
fi

mkdir -p "$clients"
uv="$(command -v uv || true)"
if [[ -z $uv ]]; then
    uv="$clients/.uv/bin/uv"
    if [[ ! -x $uv ]]; then
        "${PYTHON:-python3}" -m venv "$clients/.uv"
        "$clients/.uv/bin/pip" install -q uv==0.13.9
    fi
fi

# Where pip is told of packages on the disk (torch for the CPU), uv hears of it too.
found=()
if [[ -n ${PIP_FIND_LINKS:-} ]]; then found=(--find-links "$PIP_FIND_LINKS"); fi

python_client() { # python_client LIST ENVIRONMENT
    local list="$1" venv="$2" asked without
    if [[ -n $update ]]; then
        # "# NAME… without NAME…": packages that are pinned by nothing that the tests use, and large.
        asked="$(sed -n '1s/^# //p' "$list")"
        without="$(sed -n 's/.* without //p' <<<"$asked" | tr ' ' '|')"
        {
            echo "# $asked"
            tr ' ' '\n' <<<"${asked%% without *}" |
                "$uv" pip compile -q --upgrade --no-header --no-annotate --python-version 3.11 - |
                grep -vE "^(${without:-=})[^=]*=="
        } >"$list.new"
        mv "$list.new" "$list"
    fi
    cmp -s "$list" "$venv/pinned" && return
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv --without-pip "$venv" &&
        # The list is complete, so nothing is resolved.
        "$uv" pip install -q --no-deps "${found[@]}" --python "$venv/bin/python" -r "$list" &&
        cp "$list" "$venv/pinned"
}

node_client() { # node_client FOLDER ENVIRONMENT
    local source="$1" target="$2" name
    if [[ -n $update ]]; then
        (
            cd "$source"
            rm -f package-lock.json
            for name in $(node -p 'Object.keys(require("./package.json").dependencies).join(" ")'); do
                npm pkg set "dependencies[$name]=$(npm view "$name" version)"
            done
            npm install --silent --package-lock-only
            sed -i '/^ *"resolved":/d' package-lock.json
        )
    fi
    cmp -s "$source/package-lock.json" "$target/pinned" && return
    rm -rf "$target"
    mkdir -p "$target"
    cp "$source"/package*.json "$target"
    (cd "$target" && npm ci --silent --no-audit --no-fund --ignore-scripts --omit=optional) &&
        cp "$source/package-lock.json" "$target/pinned"
}

failed=0
for name in "${names[@]}"; do
    for folder in "$pinned" "$pinned/nightly"; do
        if [[ -f $folder/$name.txt ]]; then
            python_client "$folder/$name.txt" "$clients/$name" || failed=1
            continue 2
        elif [[ -f $folder/$name/package.json ]]; then
            node_client "$folder/$name" "$clients/$name" || failed=1
            continue 2
        fi
    done
    echo "no client $name; there are: $(names_in "$pinned" "$pinned/nightly" | xargs)" >&2
    exit 2
done
exit "$failed"
