#!/usr/bin/env bash
# The scenarios on a real cluster; tests/cluster/README.md says what that is. Arguments are passed on to
# tests/cluster/scenarios/run.py: --list, or names of scenarios. Where no node can run, those that need none run and the others
# are counted as skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
need_python

tests/scripts/model.sh
cargo build --workspace ${BINARIES:---bins}
mode="$(cluster_mode)"
only=()
[ "$mode" = node ] || only=(--control-plane)
logs="$cache/logs/cluster"
rm -rf "$logs"
python3 tests/cluster/cluster.py run "${only[@]}" --logs "$logs" \
  python3 tests/cluster/scenarios/run.py "${only[@]}" --binaries "$(binaries)" "$@"
