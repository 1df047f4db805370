#!/usr/bin/env bash
# Checks and measures a GPU, in eight minutes at most, which its own limits see to: the kernels' and the backend's own tests on
# the hardware, then bandwidth, every kernel beside its roofline, decode and prefill throughput, switch times, torch and vLLM
# where they are installed.
#
#   gpu-check.sh --prepare     here, without a GPU: builds all that is needed into .gpu-check/ (under 64 MB), to be carried along
#   gpu-check.sh               there: uses .gpu-check/ when it is there, else builds; results go to $OUT (default gpu-check-results/)
#                              seconds at most: GPU_CHECK_TESTS_SECONDS (150) of tests, GPU_CHECK_SECONDS (230) of measuring
#   gpu-check.sh --emulated    the whole of it in tiny sizes on the emulated device; shows that it works, measures nothing
#
# Without a driver it says so and ends well. Nothing is downloaded on the GPU machine: kernels come compiled, cuBLASLt is used
# if the machine has it (CUDA, or the packages of torch), and without NVRTC the tests that compile are left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
prepared=.gpu-check
mode="${1:-measure}"
case "$mode" in --prepare | --emulated | measure) ;; *) die "usage: gpu-check.sh [--prepare | --emulated]" ;; esac

# build: the programs, with the features that `make test` builds; prints their paths: the kernels' tests, the engine's tests on
# a device, and the measurement.
build() {
  local messages
  need_cargo
  local features=(--workspace --features modelprofile-kernels/cuda,modelprofile-engine/cuda --message-format json)
  messages="$(cargo test "${features[@]}" --test cuda --test device --no-run)"
  messages+=$'\n'"$(cargo build "${features[@]}" --example gpu-check)"
  python3 -c '
import json, sys
found = {}
for line in sys.stdin:
    if not line.startswith("{"): continue
    m = json.loads(line)
    if m.get("reason") != "compiler-artifact" or not m.get("executable"): continue
    # The worker has tests of the name "cuda", too.
    if m["target"]["name"] == "cuda" and "modelprofile-kernels" not in m["package_id"] and "worker/kernels" not in m["package_id"]: continue
    found[m["target"]["name"]] = m["executable"]
print(found["cuda"], found["device"], found["gpu-check"])' <<<"$messages"
}

# emulated: LD_LIBRARY_PATH of the emulated device and NVRTC.
emulated() {
  local libraries python nvrtc
  libraries="$(worker/kernels/gpu-sim/build.sh plain)"
  python="$(venv cuda tests/cuda/requirements.txt)"
  nvrtc="$(find "$(dirname "$python")/../lib" -name libnvrtc.so.13 -print -quit)"
  [ -n "$nvrtc" ] || die "the package nvidia-cuda-nvrtc brought no libnvrtc.so.13"
  printf '%s\n' "$libraries:$(dirname "$nvrtc")"
}

if [ "$mode" = --prepare ]; then
  need_python
  say "building the tests and the measurement"
  read -r kernels engine check <<<"$(build)"
  rm -rf "$prepared.part"
  mkdir -p "$prepared.part/bin"
  strip -o "$prepared.part/bin/kernel-tests" "$kernels"
  strip -o "$prepared.part/bin/engine-tests" "$engine"
  strip -o "$prepared.part/bin/gpu-check" "$check"
  export LD_LIBRARY_PATH="$(emulated)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  say "compiling the kernels for 9.0 and 10.0"
  "$prepared.part/bin/gpu-check" --ship "$prepared.part/kernels" --capability 9.0,10.0
  git rev-parse HEAD >"$prepared.part/commit" 2>/dev/null || true
  rm -rf "$prepared"
  mv "$prepared.part" "$prepared"
  bytes="$(du -sb "$prepared" | cut -f1)"
  [ "$bytes" -lt $((64 << 20)) ] || die "$prepared has $bytes bytes; 64 MiB are what is carried along"
  say "$prepared is ready: $((bytes >> 20)) MiB. On the GPU machine, beside a copy of the repository: tests/scripts/gpu-check.sh"
  exit 0
fi

out="${OUT:-gpu-check-results}"
mkdir -p "$out"
options=()
limit_tests="${GPU_CHECK_TESTS_SECONDS:-150}" limit_check="${GPU_CHECK_SECONDS:-230}" jobs=8
if [ "$mode" = --emulated ]; then
  export LD_LIBRARY_PATH="$(emulated)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  # Tests have run as such already; here two of them show that they can be run from here.
  filter=(--only plan::each_kind --only layout::)
  options=(--tiny)
  limit_tests=900 limit_check=900 jobs=2
else
  # The model that "real" is about is not carried along.
  filter=(--skip real::)
  found=
  for folder in $(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 /{print $NF}') /usr/lib/x86_64-linux-gnu/libcuda.so.1 \
    /usr/lib64/libcuda.so.1 /usr/local/nvidia/lib64/libcuda.so.1; do
    [ ! -e "$folder" ] || { found="$folder"; break; }
  done
  if [ -z "$found" ]; then
    say "gpu-check is skipped: there is no NVIDIA driver here (libcuda.so.1 was not found)"
    exit 0
  fi
  # Folders of NVRTC and cuBLASLt: of CUDA, of its Python packages, of torch.
  folders="$(dirname "$found")"
  for library in libcublasLt.so libnvrtc.so; do
    file="$(ldconfig -p 2>/dev/null | awk -v l="$library" 'index($1, l) == 1 {print $NF; exit}')"
    for root in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib $(python3 -c 'import sys; print(*[p for p in sys.path if p.endswith("-packages")])' 2>/dev/null); do
      [ -z "$file" ] || break
      file="$(find "$root" -name "$library.1[23]" -print -quit 2>/dev/null || true)"
    done
    [ -z "$file" ] || folders+=":$(dirname "$file")"
  done
  export LD_LIBRARY_PATH="$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  if ! compgen -G "${folders//:/\/libnvrtc.so.1* }/libnvrtc.so.1*" >/dev/null; then
    say "NVRTC is not here: kernels come compiled, and the tests that compile are left out"
    filter+=(--skip compile::)
  fi
fi

if [ "$mode" != --emulated ] && [ -d "$prepared" ]; then
  kernels="$prepared/bin/kernel-tests" engine="$prepared/bin/engine-tests" check="$prepared/bin/gpu-check"
  options+=(--kernels "$prepared/kernels")
  export MODELPROFILE_TEST_UNITS="$PWD/$prepared/kernels" MODELPROFILE_TEST_KERNELS="$PWD/$prepared/kernels"
else
  read -r kernels engine check <<<"$(build)"
fi

failed=0
say "tests on the device"
# Each test in a process of its own: a kernel's fault spoils the device for the rest of its process.
python3 tests/cuda/apart.py --jobs "$jobs" --limit "$limit_tests" "${filter[@]}" --log "$out/tests.log" "$kernels" "$engine" || failed=$?
tail -n 1 "$out/tests.log" >&2
[ "$failed" = 0 ] || say "tests failed; the log is $out/tests.log"
say "torch and vLLM"
timeout 60 python3 tests/cuda/peers.py >"$out/peers.json" 2>"$out/peers.log" ||
  printf '{"products": [], "reason": "peers.py did not finish: see peers.log"}\n' >"$out/peers.json"
say "measuring"
timeout "$limit_check" "$check" --seconds $((limit_check * 2 / 3)) "${options[@]}" --tests "$out/tests.log" --peers "$out/peers.json" \
  --json "$out/gpu-check.json" --markdown "$out/gpu-check.md" || { failed=$?; say "the measurement ended with exit code $failed"; }
if [ "$mode" = --emulated ] && [ "$failed" = 0 ]; then
  python3 tests/cuda/check_report.py "$out/gpu-check.json" "$out/gpu-check.md"
  say "a model served under load (tests/cuda/serve.py)"
  python3 tests/cuda/serve.py "$(binaries)/modelprofile-worker" --shape tiny --budget 256Mi --streams 2 --prompt 20 --tokens 12 \
    --seconds 2 --switches 2 --json "$out/serve.json" --log "$out/serve.log" >/dev/null || failed=$?
fi
say "results are in $out"
exit "$failed"
