#!/usr/bin/env bash
# Measures the operator beside thousands of ModelProfiles whose workers are fakes that it really asks: memory, processor, time of
# a pass, what it writes while nothing happens, and how soon a pin reaches the last worker.
#
#   tests/scripts/bench-operator.sh [--quick] [--count 1000,5000] [--steady-seconds 300]
#
# On a real control plane, without a node; half an hour on two cores, --quick four minutes. The last line is `operator: {...}`.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
need_python

say "building the operator (release)"
cargo build --quiet --release -p modelprofile-operator --bin modelprofile
release="$(dirname "$(binaries)")/release"
# As root it has a network of its own, in which each fake has an address; else those of 127.0.0.0/8 have to do.
exec python3 tests/cluster/cluster.py run --control-plane \
  python3 tests/cluster/fleet.py --operator "$release/modelprofile" --build release "$@"
