#!/usr/bin/env bash
# beside.sh NAME OTHER [ARGUMENT...] -- COMMAND [ARGUMENT...]
# Runs COMMAND, and beside it OTHER with what COMMAND leaves of the processors: for a COMMAND that has limits of time and often
# waits, and an OTHER that has none. The lines of OTHER begin with NAME. Fails where one of the two does, once both have ended.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

name="${1:-}"
[ $# -eq 0 ] || shift
other=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  other+=("$1")
  shift
done
[ $# -gt 1 ] && [ ${#other[@]} -gt 0 ] || die "usage: beside.sh NAME OTHER [ARGUMENT...] -- COMMAND [ARGUMENT...]"
shift

lines() { while IFS= read -r line || [ -n "$line" ]; do printf '%s | %s\n' "$name" "$line"; done; }

if command -v setsid >/dev/null && command -v chrt >/dev/null; then
  # A session of its own, with the least weight: where the kernel shares the processors among sessions first (autogroup), a
  # process's own priority counts only within its session.
  setsid bash -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null || true; exec chrt --idle 0 "$@"' "$name" "${other[@]}" \
    > >(lines) 2>&1 &
  beside=$!
  trap 'kill -- -$beside 2>/dev/null || true' EXIT
else
  nice -n 19 "${other[@]}" > >(lines) 2>&1 &
  beside=$!
  trap 'kill $beside 2>/dev/null || true' EXIT
fi
trap 'exit 130' INT TERM

failed=()
"$@" || failed+=("$1")
wait $beside || failed+=("${other[0]}")
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}; what it said stands above"
