#!/usr/bin/env bash
# Which lines of the GPU backend and of its kernels the tests execute on the emulated device, file by file; fewer than 95 %
# are an error (tests/cuda/coverage.py). Another limit as the argument.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
need_python
command -v gcov >/dev/null || die "gcov is missing; install it with: apt-get install -y gcc"
nvrtc="$(nvrtc_folder)"
export LD_LIBRARY_PATH="$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
target="$(target_folder)"
exec python3 tests/cuda/coverage.py "$target/coverage-cuda" "$@"
