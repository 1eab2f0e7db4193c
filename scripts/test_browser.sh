#!/usr/bin/env bash
# Tests of the console and of other pages in a browser, driven by Playwright from an environment of its own: BROWSER_VENV, made
# or reused (default: .venv-browser). The browser is PENSTOCK_BROWSER, the system's chromium, one that Playwright
# downloads, or in CI one from the system's packages; where none can be had, the tests are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${BROWSER_VENV:-.venv-browser}"
python3 -m venv "$venv"
"$venv/bin/pip" install -q -c constraints.txt -e '.[dev]' playwright axe-playwright-python

found() { command -v chromium || command -v google-chrome || true; }
from_packages() {
    [[ ${CI:-} == true && $(id -u) == 0 ]] && apt-get update && apt-get install -y --no-install-recommends chromium
}

browser="${PENSTOCK_BROWSER:-$(found)}" # empty: the one that Playwright has downloaded
if [[ -z $browser ]] && ! "$venv/bin/playwright" install chromium >/dev/null 2>&1; then
    if ! from_packages >/dev/null 2>&1; then
        echo "skipped: no browser here, and none can be downloaded"
        exit 0
    fi
    browser="$(found)"
fi
PENSTOCK_BROWSER="$browser" exec "$venv/bin/pytest" -m browser "$@"
