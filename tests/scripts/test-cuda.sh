#!/usr/bin/env bash
# Tests the CUDA backend on the emulated device: its own tests, then the kernels', the engine's and the worker's. The kernels are
# compiled by the real NVRTC (90 MB from PyPI, once) and executed on the host; no GPU is needed, and none is used.
#   CUDASIM_KIND=race        the instrumented build, which names races
#   CUDASIM_ORDER, _SEED     the order of threads; see worker/kernels/gpu-sim/README.md
# Arguments go to the test programs: tests/scripts/test-cuda.sh attention --test-threads=1
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  say "skipped: the emulated device runs on Linux on x86-64 only"
  exit
fi
sim=worker/kernels/gpu-sim
kind="${CUDASIM_KIND:-plain}"

say "the emulated device ($kind)"
"$sim/selftest/run.sh" "$kind"
libraries="$("$sim/build.sh" "$kind")"

say "the CUDA backend, and the engine and the worker on it"
tests/scripts/model.sh
# Tests of several devices need up to four.
export CUDASIM_DEVICES="${CUDASIM_DEVICES:-4}"
nvrtc="$(nvrtc_folder)"
export LD_LIBRARY_PATH="$libraries:$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The whole workspace, as `make test-rust` builds it: one package alone would have other features, and be compiled anew with
# all that it is made of.
cargo test --workspace --features modelprofile-kernels/cuda,modelprofile-engine/cuda --test cuda --test device -- "$@"
