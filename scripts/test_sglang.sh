#!/usr/bin/env bash
# SGLang needs a GPU, so its engine is tested on a stand-in; this holds the stand-in against SGLang's own sources, which
# are downloaded without what they depend on (39 MB), and read, not run. SGLANG_VERSION is the version (default: 0.5.23),
# VENV the usual environment (default: .venv), SGLANG_SOURCES where sources are kept (default: .venv-sglang).
set -euo pipefail
cd "$(dirname "$0")/.."

version="${SGLANG_VERSION:-0.5.23}"
python="${VENV:-.venv}/bin/python"
sources="${SGLANG_SOURCES:-.venv-sglang}/$version"
if [[ ! -d $sources/sglang ]]; then
    download="$(mktemp -d)"
    trap 'rm -rf "$download"' EXIT
    if ! "$python" -m pip download -q --no-deps --only-binary :all: -d "$download" "sglang==$version" 2>"$download/log"; then
        tail -n 1 "$download/log"
        echo "skipped: SGLang $version cannot be downloaded here"
        exit 0
    fi
    mkdir -p "$sources"
    "$python" - "$download"/*.whl "$sources" <<'END'
import sys
from zipfile import ZipFile

with ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith("sglang/srt/") and name.endswith(".py")])
END
fi
PENSTOCK_SGLANG="$(realpath "$sources/sglang")" "$python" -m pytest -m sglang tests/engines/sglang "$@"
