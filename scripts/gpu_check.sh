#!/usr/bin/env bash
# What ought to be run on a machine with a GPU: the contract of engines on vLLM and SGLang, serving and the two
# comparisons with vLLM alone. It has not been run on a GPU yet. It makes GPU_VENV (default: .venv-gpu) with vLLM's usual
# build and GPU_VENV-sglang with SGLang (SGLANG=0: without it); after that it takes at most ten minutes. MODEL is a model
# for one more step, a job over 200 tickets. The summary is in gpu_check.txt.
#
#   --dry-run  print the steps
#   --cpu      on vLLM's CPU build (VLLM_VENV, see scripts/install_vllm.sh): tries this script
set -euo pipefail
cd "$(dirname "$0")/.."

dry="" cpu=""
for arg in "$@"; do
    case "$arg" in
    --dry-run) dry=1 ;;
    --cpu) cpu=1 ;;
    *)
        echo "usage: $0 [--dry-run] [--cpu]" >&2
        exit 2
        ;;
    esac
done

if [[ -n $cpu ]]; then
    venv="${VLLM_VENV:-.venv-vllm}"
else
    venv="${GPU_VENV:-.venv-gpu}"
    if [[ -z $dry ]] && ! nvidia-smi -L >/dev/null 2>&1; then
        echo "there is no NVIDIA GPU here (nvidia-smi -L fails); --cpu tries this script without" >&2
        exit 2
    fi
fi
sglang='' # its environment, if it is tried
[[ -n $cpu || ${SGLANG:-1} == 0 ]] || sglang="$venv-sglang"
if [[ -z $dry ]]; then
    if [[ -n $cpu ]]; then
        [[ -x $venv/bin/python ]] || scripts/install_vllm.sh
    elif [[ ! -x $venv/bin/pytest ]]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q -e '.[vllm,dev]'
    fi
    if [[ -n $sglang && ! -x $sglang/bin/pytest ]]; then
        python3 -m venv "$sglang"
        "$sglang/bin/pip" install -q -e '.[sglang,dev]'
    fi
    : >gpu_check.txt
    mkdir -p build # where the job of MODEL writes
fi

failed=0
step() { # step NAME SECONDS COMMAND…: a step that fails keeps no other from running
    local name="$1" seconds="$2" began=$SECONDS outcome=passed
    shift 2
    if [[ -n $dry ]]; then
        printf '%-9s at most %3d s: %s\n' "$name" "$seconds" "$*"
        return
    fi
    printf '\n=== %s: %s\n' "$name" "$*"
    timeout --kill-after=20 "$seconds" "$@" 2>&1 | tee gpu_check.log || outcome=FAILED failed=1
    { printf '%-9s %s in %d s\n' "$name" "$outcome" $((SECONDS - began)) && tail -n 6 gpu_check.log; } >>gpu_check.txt
}

python="$venv/bin/python"
if [[ -z $cpu ]]; then
    step machine 10 nvidia-smi
fi
step contract 130 "$python" -m pytest -q -W ignore -m vllm tests/engines/vllm/test_engine.py
step serving 90 "$python" -m pytest -q -W ignore -m vllm tests/engines/vllm/test_serving.py
step streaming 120 "$python" bench/vllm_front.py --only streaming --clients 1 64 --rounds 1 --requests 4
step batch 80 "$python" bench/vllm_front.py --only batch --rounds 1 --rows 1024
if [[ -n $sglang ]]; then
    SGLANG_ITSELF=1 step sglang 100 "$sglang/bin/python" -m pytest -q -W ignore tests/engines/sglang/test_engine.py \
        -k TestContract
fi
if [[ -n ${MODEL:-} ]]; then
    step model 70 "$venv/bin/penstock" run src/penstock/demo/tickets.jsonl -o build/gpu_check.jsonl --fresh --limit 200 \
        --engine vllm --model "$MODEL" --prompt 'Summarise in one line: {ticket}' --max-tokens 40
fi
[[ -n $dry ]] || { rm -f gpu_check.log && printf '\n' && cat gpu_check.txt; }
exit "$failed"
