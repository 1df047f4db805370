#!/usr/bin/env bash
# What the real compiler makes of the GPU kernels, for sm_90a, on any machine: registers, spills, shared memory and occupancy
# against a committed table and budgets, and the machine instructions against what each kernel needs (tests/cuda/check.py).
#   --update   writes the table
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo

python="$(venv cuda-check tests/cuda/check-requirements.txt)"
packages="$(dirname "$python")/../lib"
# tool NAME: a file of the packages.
tool() {
  local found
  found="$(find "$packages" -name "$1" -not -name '*.py' \( -type f -o -type l \) -print -quit)"
  [ -n "$found" ] || die "the packages of tests/cuda/check-requirements.txt brought no $1"
  printf '%s\n' "$found"
}
nvrtc="$(tool libnvrtc.so.13)" ptxas="$(tool ptxas)" nvdisasm="$(tool nvdisasm)"
chmod +x "$ptxas" "$nvdisasm"

say "the kernels, by NVRTC"
folder="$cache/cuda-check/$(basename "$(dirname "$(dirname "$python")")")"
export LD_LIBRARY_PATH="$(dirname "$nvrtc")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cargo run --quiet -p modelprofile-kernels --features cuda --example cuda-kernels -- "$folder"
say "registers, occupancy and instructions, by ptxas and nvdisasm"
"$python" tests/cuda/check.py "$folder" "$nvrtc" "$ptxas" "$nvdisasm" "$@"
