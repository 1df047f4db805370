#!/usr/bin/env bash
# Reads what the worker writes with foreign readers on the CPU: transformers with compressed-tensors, and the gguf package.
# The first run installs them: 5 GB, a minute or two on a fast line.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
tests/scripts/model.sh
python="$(venv interchange tests/interchange/requirements.txt)"
smollm2="$cache/models/SmolLM2-135M-Instruct-BF16"
[ -e "$smollm2/model.safetensors" ] || "$python" tests/scripts/make_bf16_checkpoint.py models/SmolLM2-135M-Instruct-Q4_1.gguf "$smollm2"
cargo build --quiet --workspace ${BINARIES:---bins}
exec "$python" tests/interchange/run.py --worker "$(binaries)/modelprofile-worker" --operator "$(binaries)/modelprofile" --smollm2 "$smollm2"
