#!/usr/bin/env bash
# Breaks the GPU kernels in one place after the other, each barrier among them, and tells whether a test notices
# (tests/cuda/mutants.py). Exit code 1 when one is not noticed.
#   arguments: names of files or numbers of mutants; all without
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
need_python
nvrtc="$(nvrtc_folder)"
export LD_LIBRARY_PATH="$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
target="$(target_folder)"
exec python3 tests/cuda/mutants.py "$target/mutants-cuda" "$@"
