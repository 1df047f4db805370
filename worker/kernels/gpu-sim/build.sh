#!/usr/bin/env bash
# Builds the emulated device: gpu-sim/build.sh plain|race [NAME KERNELS]. Prints the folder that LD_LIBRARY_PATH wants:
#   libcuda.so.1, libcublasLt.so.13, libnccl.so.2   what cudarc loads
#   libcudasim_kernels.so                           the worker's kernels; with NAME, libcudasim_NAME.so of that folder
# race: the kernels are instrumented, and races and reads of memory that nobody wrote are faults.
# gpu-sim/build.sh plain|race --flags prints how a unit of kernels is compiled instead, an argument a line.
# Only what changed is compiled. Everything lies below
# $CARGO_TARGET_DIR/gpu-sim (default target/gpu-sim), or $GPU_SIM_BUILD.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
worker_kernels="$here/../src/cuda/kernels"
kind="${1:-plain}"
library="${2:-kernels}"
kernels="$(cd "${3:-$worker_kernels}" && pwd)"
root="${GPU_SIM_BUILD:-${CARGO_TARGET_DIR:-$here/../../../target}/gpu-sim}"

die() { printf 'error: %s\n' "$*" >&2; exit 1; }
case "$kind" in plain | race) ;; *) die "usage: build.sh plain|race [NAME KERNELS]" ;; esac
cxx="${CXX:-g++}"
command -v "$cxx" >/dev/null || die "$cxx is missing; install it with: apt-get install -y g++"
[ "$(uname -sm)" = "Linux x86_64" ] || die "the emulated device runs on Linux on x86-64 only"

mkdir -p "$root/$kind"
root="$(cd "$root" && pwd)"
out="$root/$kind"
# One build at a time: tests of several crates may ask for it at once.
exec 9>"$root/lock"
flock 9

# x86-64-v3: AVX2, FMA and F16C, which server processors have since about 2015. Kernels read memory as other types than
# it was written (-fno-strict-aliasing). -g1: messages name lines; variables nobody reads, and they take a sixth of the time.
base=(-std=c++17 -g1 -O2 -march=x86-64-v3 -fPIC -fno-strict-aliasing -fvisibility=hidden -Wall -Wextra)
# A misaligned access, an index beyond an array of known size and a division by zero are faults of a kernel. CUDA's
# pragmas and its unused device functions are none.
kernel=("${base[@]}" -fsanitize=alignment,bounds,integer-divide-by-zero -Wno-unknown-pragmas -Wno-unused-function)
if [ "$kind" = race ]; then
  kernel+=(-O1 -fsanitize=thread -fno-tree-vectorize -fno-tree-slp-vectorize)
fi
if [ "$library" = --flags ]; then
  printf '%s\n' "$cxx" "${kernel[@]}" -I"$here/shim"
  exit
fi
# -O3: the products of mma are the emulator's inner loop.
driver=("${base[@]}" -O3 -Werror)

digest() { sha256sum | cut -c1-32; }
compiler="$("$cxx" --version | head -1)"

# object FOLDER NAME SOURCE FLAGS...: adds the object to `parts`, and compiles the source beside others; `compiled` waits for all.
cores="$(getconf _NPROCESSORS_ONLN)"
running=0
object() {
  parts+=("$out/objects/$1/$2.o")
  [ $running -lt "$cores" ] || one_compiled
  compile "$@" &
  running=$((running + 1))
}
one_compiled() { wait -n || exit 1; running=$((running - 1)); }
compiled() { while [ $running -gt 0 ]; do one_compiled; done; }
# The same arguments: compiles the source unless nothing that the object was made of has changed.
compile() {
  local made="$out/objects/$1/$2" source="$3"
  shift 3
  if [ ! -e "$made.o" ] || [ "$(cat "$made.made-of" 2>/dev/null)" != "$(made_of "$made" "$@")" ]; then
    mkdir -p "$(dirname "$made")"
    rm -f "$made.o"
    "$cxx" "$@" -MMD -MF "$made.d" -c "$source" -o "$made.part" 9>&- >&2 || die "$(basename "$made") did not compile"
    mv "$made.part" "$made.o"
    made_of "$made" "$@" >"$made.made-of"
  fi
}
# A digest of the compiler, its flags, and the files that the compiler said it read.
made_of() {
  local made="$1"
  shift
  { printf '%s\n' "$compiler" "$@"; sed -e 's/^[^:]*: *//' -e 's/\\$//' "$made.d" 2>/dev/null | xargs cat 2>/dev/null; } | digest
}

# link LIBRARY FLAGS... -- OBJECTS...: the shared library, unless it is made of these very objects.
link() {
  local file="$out/$1" flags=()
  shift
  while [ "$1" != -- ]; do flags+=("$1"); shift; done
  shift
  if [ ! -e "$file" ] || [ "$(cat "$file.made-of" 2>/dev/null)" != "$(cat "$@" | digest)" ]; then
    "$cxx" -shared -Wl,-z,defs -Wl,-soname,"$(basename "$file")" -o "$file.part" "$@" "${flags[@]}"
    mv "$file.part" "$file"
    cat "$@" | digest >"$file.made-of"
  fi
}

# ---- the driver, and the libraries beside it ----
detector=("$here/race/none.cpp")
[ "$kind" = plain ] || detector=("$here"/race/detector/*.cpp)
parts=()
for source in "$here"/emu/*.cpp "$here"/driver/*.cpp "${detector[@]}"; do
  object driver "$(basename "$(dirname "$source")")-$(basename "$source" .cpp)" "$source" "${driver[@]}"
done
compiled
link libcuda.so.1 -lpthread -ldl -- "${parts[@]}"
ln -sf libcuda.so.1 "$out/libcuda.so"
beside=(-L"$out" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN')
for pair in cublaslt:libcublasLt.so.13 nccl:libnccl.so.2; do
  parts=()
  for source in "$here/${pair%%:*}"/*.cpp; do
    object "${pair%%:*}" "$(basename "$source" .cpp)" "$source" "${driver[@]}"
  done
  compiled
  link "${pair##*:}" "${beside[@]}" -- "${parts[@]}"
done

# ---- the kernels ----
# Each source becomes a translation unit: emu.h, prim.cuh, the folder's other .cuh by name, then the source itself, and a
# table of its entries. These are read from what the preprocessor makes of it, so that macros may declare them.
includes=(-I"$here/shim" -I"$kernels" -I"$worker_kernels")
write_unit() {
  local name="$1" unit="$2" header names
  {
    printf '#include "emu.h"\n#include "library.h"\n#include "prim.cuh"\n'
    for header in "$kernels"/*.cuh; do
      [ "$(basename "$header")" = prim.cuh ] || printf '#include "%s"\n' "$(basename "$header")"
    done
    printf '#include "%s.cu"\n' "$name"
  } >"$unit.part.cpp"
  names="$("$cxx" "${base[@]}" "${includes[@]}" -DEMU_MARK_ENTRIES -E -P "$unit.part.cpp" | tr '\n' ' ' |
    grep -oE 'EMU_KERNEL +void +[A-Za-z_][A-Za-z_0-9]*' | awk '{print $NF}')" || die "$name.cu declares no kernel"
  {
    printf 'static const emu::Entry entries_of_this_unit[] = {\n'
    printf '    EMU_ENTRY(%s)\n' $names
    printf '};\nstatic const EmuRegister registered{entries_of_this_unit};\n'
  } >>"$unit.part.cpp"
  mv "$unit.part.cpp" "$unit"
}
parts=()
object "$library" library "$here/shim/library.cpp" "${base[@]}"
mkdir -p "$out/units/$library"
for source in "$kernels"/*.cu; do
  [ -e "$source" ] || die "there are no kernels in $kernels"
  name="$(basename "$source" .cu)"
  unit="$out/units/$library/$name.cpp"
  # The unit itself is made again whenever a file that may declare kernels has changed.
  id="$(cat "$here"/shim/keywords.h "$kernels"/*.cuh "$source" | digest)"
  if [ "$(cat "$unit.made-of" 2>/dev/null)" != "$id" ]; then
    write_unit "$name" "$unit"
    printf '%s\n' "$id" >"$unit.made-of"
  fi
  object "$library" "$name" "$unit" "${kernel[@]}" "${includes[@]}"
done
compiled
link "libcudasim_$library.so" "${beside[@]}" -- "${parts[@]}"
printf '%s\n' "$out"
