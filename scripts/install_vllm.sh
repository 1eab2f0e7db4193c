#!/usr/bin/env bash
# A CPU build of vLLM, for developers and CI: no GPU, no compiler. About 2.3 GB.
#
# VLLM_EXTRAS names files of scripts/vllm/extras/ to add: "nixl" moves KV caches between engines (241 MB).
# VLLM_VERSION is one of those in scripts/vllm/ (default: 0.32.0), VLLM_VENV the environment to make (default:
# .venv-vllm, or .venv-vllm-VERSION where a version is given). Every version of every package is pinned there: the smallest set
# with which Penstock's tests run, so without vision, audio in other forms than files, and compiled kernels in Python.
# What was downloaded stays in pip's cache, so an interrupted run goes on where it was; a finished one is not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

version="${VLLM_VERSION:-0.32.0}"
pinned="$(ls -d scripts/vllm/"$version"*.txt 2>/dev/null | tail -n 1 || true)" # 0.31 stands for 0.31.0
if [[ -z $pinned ]]; then
    echo "no pinned packages for vLLM $version; there are: $(basename -s .txt scripts/vllm/*.txt | xargs)" >&2
    exit 2
fi
version="$(basename -s .txt "$pinned")"
venv="${VLLM_VENV:-.venv-vllm${VLLM_VERSION:+-$VLLM_VERSION}}"

lists=("$pinned")
for extra in ${VLLM_EXTRAS:-}; do lists+=("scripts/vllm/extras/$extra.txt"); done

stamp="$venv/penstock-vllm.txt"
if ! cat "${lists[@]}" | cmp -s - "$stamp"; then
    [[ -x $venv/bin/pip ]] || "${PYTHON:-python3}" -m venv "$venv"
    # On PyPI torch for Linux comes with CUDA; the CPU build has an index of its own, or is at hand already.
    torch="$(grep '^torch==' "$pinned")"
    "$venv/bin/pip" install -q --no-compile --no-deps "$torch" 2>/dev/null ||
        "$venv/bin/pip" install -q --no-compile --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
    # The list is complete, so nothing is resolved: what vLLM asks for beyond it is not needed here.
    for list in "${lists[@]}"; do "$venv/bin/pip" install -q --no-compile --no-deps -r "$list"; done
    cat "${lists[@]}" >"$stamp"
fi
"$venv/bin/pip" install -q --no-compile --no-deps -e .
echo "vLLM $version for the CPU in $venv: $(du -sm "$venv" | cut -f1) MB"
