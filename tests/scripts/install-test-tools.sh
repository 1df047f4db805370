#!/usr/bin/env bash
# Installs what takes minutes of what `make test` wants beside cargo, where it is not there: the parts of the cluster, and the
# packages of foreign readers. Whatever needs them installs them too; this does it early, beside work that does not.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

# The packages wait for the network while the cluster's parts are compiled.
venv interchange tests/interchange/requirements.txt >/dev/null &
packages=$!
cluster_mode
wait $packages
