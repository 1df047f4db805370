# What the scripts share; sourced, not run. Each script has set -euo pipefail and stands in the repository's root.

# Everything downloaded or built outside the repository goes here.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/modelprofile"

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_cargo: cargo on the PATH, or the command that installs it.
need_cargo() {
  if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  fi
  command -v cargo >/dev/null ||
    die "cargo is missing; install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
  command -v cc >/dev/null || die "a C linker (cc) is missing; install it with: apt-get install -y gcc libc6-dev"
}

# need_python: python3 with pip and venv, or the command that installs them.
need_python() {
  local install="apt-get install -y python3 python3-pip python3-venv"
  command -v python3 >/dev/null || die "python3 is missing; install it with: $install"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || die "python3 is older than 3.9; install a newer one with: $install"
  python3 -c 'import ensurepip, venv' 2>/dev/null || die "python3 has no venv module; install it with: $install"
}

# venv NAME REQUIREMENTS: a virtual environment under the cache that holds what the file lists; prints its python.
# It is built anew when the file or the interpreter changes, and never left half built under its final name.
venv() {
  local stamp dir
  need_python
  stamp="$(cat "$2" <(python3 -VV) | sha256 | cut -c1-12)"
  dir="$cache/venv/$1-$stamp"
  if [ ! -e "$dir/complete" ]; then
    say "installing Python packages of $2"
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2" >&2
    touch "$dir/complete"
  fi
  printf '%s\n' "$dir/bin/python"
}

# sha256 [FILE]: the bare digest.
sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$@" | cut -d' ' -f1; else shasum -a 256 "$@" | cut -d' ' -f1; fi
}

# free_ports: two TCP ports that nothing listens on now; both are held at once, so that they differ.
free_ports() {
  python3 -c 'import socket
held = [socket.socket(), socket.socket()]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))'
}

# binaries: the folder that cargo puts the dev profile's binaries in.
binaries() {
  cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"] + "/debug")'
}
