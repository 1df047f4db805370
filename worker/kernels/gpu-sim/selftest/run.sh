#!/usr/bin/env bash
# Runs the emulated device's own tests: selftest/run.sh plain|race.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
kind="${1:-plain}"
out="$("$here/../build.sh" "$kind" selftest "$here/kernels")"
program="$out/selftest"
made_of="$(cat "$here"/*.cpp "$here"/*.h "$here"/../driver/control.h | sha256sum)"
if [ ! -e "$program" ] || [ "$(cat "$program.made-of" 2>/dev/null)" != "$made_of" ]; then
  "${CXX:-g++}" -std=c++17 -g -O1 -Wall -Wextra -Werror -o "$program" "$here"/*.cpp \
    -L"$out" -l:libcuda.so.1 -l:libcublasLt.so.13 -l:libnccl.so.2 -lpthread -Wl,-rpath,"$out"
  printf '%s' "$made_of" >"$program.made-of"
fi
CUDASIM_KERNELS="$out/libcudasim_selftest.so" "$program" "$kind" "$here/kernels"
