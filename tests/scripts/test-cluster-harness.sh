#!/usr/bin/env bash
# Proves that tests/cluster/cluster.py gives a cluster that runs pods and leaves nothing behind, whatever ends it. Prints how
# long each step took. Where a node can't run (see `cluster.py check`), the steps that need one are counted as skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/lib.sh
need_python
cluster() { python3 tests/cluster/cluster.py "$@"; }

scratch="$(mktemp -d)"
finish() {
  cluster down --state "$scratch/state" 2>/dev/null || true
  rm -rf "$scratch"
}
trap finish EXIT

passed=0 skipped=0
# step NAME COMMAND...: runs it, shows its output only if it fails, and then ends the test.
step() {
  local name="$1" start end
  shift
  start="$(date +%s%N)"
  if ! "$@" >"$scratch/output" 2>&1; then
    cat "$scratch/output" >&2
    [ ! -d "$scratch/logs" ] || tail -n 5 "$scratch"/logs/*.log >&2
    die "failed: $name"
  fi
  end="$(date +%s%N)"
  printf '%6d.%02d s  %s\n' $(((end - start) / 1000000000)) $(((end - start) / 10000000 % 100)) "$name"
  passed=$((passed + 1))
}

# within SECONDS COMMAND...: until it succeeds.
within() {
  local limit=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $limit ] || return 1
    sleep 0.2
  done
}

# outside: all that a cluster could leave on the machine.
outside() {
  local folder name
  echo "mounts"; sort /proc/self/mounts
  echo "network devices"; ls /sys/class/net
  echo "control groups"; find /sys/fs/cgroup -type d \( -name 'modelprofile-*' -o -name 'kubepods*' \)
  echo "packet filter"; PATH="$PATH:/usr/sbin" iptables-save 2>/dev/null | grep -E 'KUBE-|CNI-' || true
  echo "processes"; ps -eo stat=,args= | awk -v cache="$cache/cluster" -v scratch="$scratch/state" \
    '$1 !~ /^Z/ && /etcd|kube|containerd|guardian.py|node.py|forward.py/ && (index($0, cache) || index($0, scratch)) && !/awk|cluster-tools/'
  echo "settings"; for name in vm/overcommit_memory kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes net/ipv4/ip_forward; do
    echo "$name $(cat /proc/sys/$name)"
  done
  echo "folders"; for folder in /var/lib/cni /var/lib/kubelet /var/log/containers "$cache/cluster/state" "$scratch/state" "$cache"/cluster/run-*; do
    [ ! -e "$folder" ] || echo "$folder"
  done
}
nothing_left() { within 10 unchanged || { diff "$scratch/before" "$scratch/after"; false; }; }
unchanged() { outside >"$scratch/after"; cmp -s "$scratch/before" "$scratch/after"; }

# Nothing listens in the pause image, so a pod that is reached refuses.
refused='import errno, socket, sys; s = socket.socket(); s.settimeout(5); sys.exit(s.connect_ex((sys.argv[1], 8000)) != errno.ECONNREFUSED)'

audit_has() { python3 - "$scratch/state/audit.log" "$@" <<'PY'
import json, sys
path, verb, resource, name = sys.argv[1:]
for line in open(path):
    event = json.loads(line)
    target = event.get("objectRef", {})
    if (event["verb"], target.get("resource"), target.get("name")) == (verb, resource, name):
        sys.exit(0)
sys.exit(f"no {verb} of {resource}/{name} in {path}")
PY
}

say "building the cluster's parts"
mode="$(cluster_mode)"
only=()
[ "$mode" = node ] || only=(--control-plane)
bin="$(tests/scripts/cluster-tools.sh "${only[@]}")"
PATH="${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS:}$bin:$PATH"
export KUBECONFIG="$scratch/state/kubeconfig"
outside >"$scratch/before"

if [ "$mode" = node ]; then
  begun=$SECONDS
  step "a node is ready" cluster up --state "$scratch/state" --logs "$scratch/logs"
  [ $((SECONDS - begun)) -lt 60 ] || die "the cluster took $((SECONDS - begun)) s, and 60 is the most"
  step "kubectl reaches it from outside" kubectl wait --for=condition=Ready node/node1 --timeout=5s
  cat >"$scratch/sleep.txt" <<'TXT'
image sleep
entrypoint /usr/bin/sleep 3600
file ${program} /usr/bin/sleep
TXT
  step "an image of a dynamically linked program is loaded" cluster image --state "$scratch/state" "$scratch/sleep.txt" --tag 1 --set "program=$(command -v sleep)" --set binaries=none
  cat >"$scratch/pods.yaml" <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: test}
spec: {selector: {app: test}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pause, labels: {app: test}}
spec: {containers: [{name: pause, image: "localhost/modelprofile-pause:1", imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: sleep}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: sleep
      image: localhost/sleep:1
      imagePullPolicy: Never
      securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
YAML
  step "pods are created" kubectl apply -f "$scratch/pods.yaml"
  step "pods are ready" kubectl wait --for=condition=Ready pod/pause pod/sleep --timeout=60s
  has_endpoint() { [ "$(kubectl get endpointslices -l kubernetes.io/service-name=test -o jsonpath='{.items[0].endpoints[0].targetRef.name}')" = pause ]; }
  step "the Service has the pod as its endpoint" within 20 has_endpoint
  step "a command runs in a container" kubectl exec sleep -- /usr/bin/sleep 0
  address="$(kubectl get pod pause -o jsonpath='{.status.podIP}')"
  step "inside, a pod's address is reachable" cluster enter --state "$scratch/state" python3 -c "$refused" "$address"
  step "inside, a Service's address is served" within 20 cluster enter --state "$scratch/state" kubectl --server=https://10.96.0.1 get --raw /readyz
  step "the audit log has what was asked" audit_has create pods pause
  step "the API server is stopped" cluster stop kube-apiserver --state "$scratch/state"
  step "the API server is started again" cluster start kube-apiserver --state "$scratch/state"
  step "it answers" within 30 kubectl get --raw /readyz
  step "the cluster goes down" cluster down --state "$scratch/state"
  step "nothing of it is left" nothing_left

  # Killed without a chance to clean up: the one who asked, while its command runs; then the guardian too.
  python3 tests/cluster/cluster.py run sh -c "echo >'$scratch/started'; sleep 600" >"$scratch/run" 2>&1 &
  asked=$!
  step "another cluster runs a command" within 60 test -e "$scratch/started"
  kill -9 $asked
  wait $asked 2>/dev/null || true
  step "kill -9 of its parent leaves nothing" nothing_left
  step "a third cluster is up" cluster up --state "$scratch/state"
  kill -9 "$(cat "$scratch/state/lock")"
  step "after kill -9 of its guardian, down clears the rest" cluster down --state "$scratch/state"
  step "nothing of it is left" nothing_left
else
  skipped=20
fi

# Without the privilege that namespaces need, which root can give up.
plain=()
[ "$(id -u)" != 0 ] || plain=(setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin)
step "a control plane runs without namespaces" "${plain[@]}" python3 tests/cluster/cluster.py run --control-plane \
  kubectl create configmap test
step "nothing of it is left" nothing_left
passes_on() { local code=0; "${plain[@]}" python3 tests/cluster/cluster.py run --control-plane sh -c 'exit 7' || code=$?; [ $code = 7 ]; }
step "the exit code is the command's" passes_on
say "$passed steps passed, $skipped skipped"
