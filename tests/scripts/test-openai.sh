#!/usr/bin/env bash
# Drives a worker that serves the real model with the official OpenAI Python client: tests/python.
# The tests get MODELPROFILE_URL and MODELPROFILE_ADMIN_URL (without a path), MODELPROFILE_ADMIN_TOKEN and MODELPROFILE_MODEL;
# those that need a worker of their own start it from MODELPROFILE_WORKER, MODELPROFILE_MANIFEST and MODELPROFILE_CACHE.
# Arguments go to pytest: tests/scripts/test-openai.sh -k stop
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_cargo
tests/scripts/model.sh
python="$(venv openai tests/python/requirements.txt)"
cargo build --quiet --workspace ${BINARIES:---bins}

run="$(mktemp -d)"
worker=
finish() {
  if [ -n "$worker" ]; then
    kill "$worker" 2>/dev/null || true
    wait "$worker" 2>/dev/null || true
  fi
  rm -rf "$run"
}
trap finish EXIT

read -r port admin_port < <(free_ports)
MODELPROFILE_ADMIN_TOKEN="$(python3 -c 'import secrets; print(secrets.token_hex(16))')"
export MODELPROFILE_ADMIN_TOKEN
MODELPROFILE_WORKER="$(binaries)/modelprofile-worker"
MODELPROFILE_MANIFEST=deploy/examples/smollm2.yaml
MODELPROFILE_CACHE="$cache"
export MODELPROFILE_WORKER MODELPROFILE_MANIFEST MODELPROFILE_CACHE
profile=quality

say "starting a worker on port $port"
"$MODELPROFILE_WORKER" serve --config "$MODELPROFILE_MANIFEST" --profile "$profile" \
  --port "$port" --admin-port "$admin_port" --cache "$cache" >"$run/log" 2>&1 &
worker=$!

"$python" - "http://127.0.0.1:$admin_port/readyz" "$worker" <<'PY' || { tail -n 30 "$run/log" >&2; die "the worker did not get ready"; }
import os, sys, time, urllib.request

url, pid = sys.argv[1], int(sys.argv[2])
limit = time.monotonic() + 300
while time.monotonic() < limit:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                sys.exit(0)
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        sys.exit("the worker ended")
    time.sleep(0.2)
sys.exit("not ready within 300 s")
PY

export MODELPROFILE_URL="http://127.0.0.1:$port" MODELPROFILE_ADMIN_URL="http://127.0.0.1:$admin_port"
MODELPROFILE_MODEL="$("$python" -c 'import json, os, urllib.request
print(json.load(urllib.request.urlopen(os.environ["MODELPROFILE_URL"] + "/v1/models"))["data"][0]["id"])')"
export MODELPROFILE_MODEL
"$python" -m pytest -q -p no:cacheprovider tests/python "$@" || { tail -n 30 "$run/log" >&2; exit 1; }
