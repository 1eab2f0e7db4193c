#!/usr/bin/env bash
# install.sh PEER: an environment of its own for a peer, kept in PENSTOCK_PEERS (default:
# ~/.cache/penstock-peers). Prints its interpreter.
set -euo pipefail
peer="${1:?give a peer: llama_cpp or litellm}"
case "$peer" in
llama_cpp) package=xllamacpp==2026.10.11549 ;; # llama.cpp's server, built
litellm) package='litellm[proxy]==1.106.12' ;;
*) echo "no peer $peer; there are llama_cpp and litellm" >&2 && exit 2 ;;
esac
home="${PENSTOCK_PEERS:-$HOME/.cache/penstock-peers}/$peer"
if [[ "$(cat "$home/installed" 2>/dev/null)" != "$package" ]]; then
    python3 -m venv --clear "$home"
    "$home/bin/pip" install -q "$package" >&2
    echo "$package" >"$home/installed"
fi
echo "$home/bin/python"
