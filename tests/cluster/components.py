"""The parts of a cluster: what each is started with, and the files it reads. Pure: values in, values out."""

import json
from dataclasses import dataclass

from layout import (
    BRIDGE, NODE, NODE_ADDRESS, PAUSE_IMAGE, POD_RANGE, SERVICE_RANGE, Layout,
)

# Who may call the API server: name of the kubeconfig -> user and groups. Tokens instead of client certificates: making keys
# would be most of the time that the whole cluster takes to start.
USERS = {
    "kubeconfig": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
}


@dataclass(frozen=True)
class Component:
    name: str
    arguments: list[str]


def kubeconfig(layout: Layout, token: str, ca: str) -> str:
    """`ca` is base64. JSON is YAML."""
    return json.dumps({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": layout.api_url, "certificate-authority-data": ca}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    })


def first(layout: Layout) -> list[Component]:
    """What the others call; started together."""
    state, pki = layout.state, layout.state / "pki"
    client, peer = (f"http://127.0.0.1:{port}" for port in layout.etcd_ports)
    etcd = [
        layout.tool("etcd"), "--name=test", f"--data-dir={state}/etcd", "--log-level=warn",
        f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}",
        # Nothing here outlives the machine.
        "--unsafe-no-fsync",
    ]
    api_server = [
        layout.tool("kube-apiserver"), f"--etcd-servers={client}", f"--secure-port={layout.api_port}",
        f"--service-cluster-ip-range={SERVICE_RANGE}", "--allow-privileged=true",
        f"--token-auth-file={pki}/tokens.csv", f"--client-ca-file={pki}/ca.crt", f"--cert-dir={state}/apiserver",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        # Written before a request is answered, so that a test that has its answer finds the line. One file, never rotated away.
        f"--audit-policy-file={state}/audit-policy.yaml", f"--audit-log-path={layout.audit_log}",
        "--audit-log-mode=blocking", "--audit-log-maxsize=10000",
    ]
    if layout.isolated:
        # Pods reach it by the node's address, which is also what the Service `kubernetes` points at.
        api_server += ["--bind-address=0.0.0.0", f"--advertise-address={NODE_ADDRESS}"]
    else:
        api_server += ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
    if not layout.control_plane:
        api_server += [
            f"--kubelet-client-certificate={pki}/kubelet-client.crt", f"--kubelet-client-key={pki}/kubelet-client.key",
            # By address: the node's name, which is tried first otherwise, is known to no DNS.
            "--kubelet-preferred-address-types=InternalIP",
        ]
    components = [Component("etcd", etcd), Component("kube-apiserver", api_server)]
    if not layout.control_plane:
        components.append(Component("containerd", ["containerd", "--config", f"{state}/containerd.toml"]))
    return components


def second(layout: Layout) -> list[Component]:
    """What calls the API server; started when it answers."""
    state, pki = layout.state, layout.state / "pki"
    # The defaults of 20 and 50 requests a second make a new namespace wait five seconds for its ServiceAccount. No leader
    # election: there is one of each, and its Lease would be a write every two seconds. Port 0 serves nothing.
    calls = ["--kube-api-qps=500", "--kube-api-burst=1000", "--leader-elect=false", "--secure-port=0"]
    components = [Component("kube-controller-manager", [
        layout.tool("kube-controller-manager"), f"--kubeconfig={pki}/controller-manager", *calls,
        "--use-service-account-credentials=true", f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt", f"--flex-volume-plugin-dir={state}/volume-plugins",
        # A test that stops the kubelet needs to wait only so long for the node to be reported lost (default 50 s). Longer than the
        # 20 s that another one takes the API server away for, the 5 s until that is up, and the 5 s between two heartbeats.
        "--node-monitor-grace-period=40s",
        # A new autoscaler is looked at for the first time after as long (default 15 s).
        "--horizontal-pod-autoscaler-sync-period=2s",
    ])]
    if layout.control_plane:
        return components
    return components + [
        Component("kube-scheduler", [layout.tool("kube-scheduler"), f"--kubeconfig={pki}/scheduler", *calls]),
        Component("kubelet", [
            layout.tool("kubelet"), f"--config={state}/kubelet.yaml", f"--kubeconfig={pki}/kubelet",
            f"--root-dir={state}/kubelet", f"--cert-dir={state}/kubelet-pki", f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}", f"--volume-plugin-dir={state}/volume-plugins",
        ]),
        Component("kube-proxy", [layout.tool("kube-proxy"), f"--config={state}/proxy.yaml"]),
    ]


def files(layout: Layout, layers: str, plugins: str) -> dict[str, str]:
    """Path below the state -> content. JSON where YAML is read, because it needs no package to write.

    `layers`: the folder for containerd's images and containers. `plugins`: the one that has the network plugins."""
    state, pki = layout.state, layout.state / "pki"
    policy = {
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        # One line for each request, when it is answered (for a watch: when it ends).
        "omitStages": ["RequestReceived", "ResponseStarted"], "rules": [{"level": "Metadata"}],
    }
    if layout.control_plane:
        return {"audit-policy.yaml": json.dumps(policy)}
    network = {
        "cniVersion": "0.4.0", "name": "test", "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipMasq": False,
                "ipam": {
                    "type": "host-local", "dataDir": f"{state}/addresses",
                    "ranges": [[{
                        "subnet": POD_RANGE, "rangeStart": "10.88.0.10", "rangeEnd": "10.88.0.250", "gateway": NODE_ADDRESS,
                    }]],
                    "routes": [{"dst": SERVICE_RANGE}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "address": NODE_ADDRESS,
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{layout.cgroup}", "failCgroupV1": False, "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        # No DNS: services are reached by their addresses, or by the variables that each container gets of them.
        "resolvConf": f"{state}/resolv.conf", "clusterDNS": [NODE_ADDRESS], "clusterDomain": "cluster.local",
        "podLogsDir": f"{state}/pod-logs", "kubeAPIQPS": 200, "kubeAPIBurst": 400,
        # How long a changed ConfigMap takes to reach a running pod (default 60 s), and how often the node reports.
        "syncFrequency": "5s", "nodeStatusUpdateFrequency": "5s",
        # A developer's nearly full disk is no reason to evict or to collect images, which no registry could bring back.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
        },
    }
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables",
        "clientConnection": {"kubeconfig": f"{pki}/proxy"}, "hostnameOverride": NODE, "clusterCIDR": POD_RANGE,
        "bindAddress": NODE_ADDRESS, "nodePortAddresses": [f"{NODE_ADDRESS}/32"],
        "iptables": {"localhostNodePorts": False, "syncPeriod": "30s", "minSyncPeriod": "0s"},
        # Zero leaves the machine's limits as they are.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return {
        "audit-policy.yaml": json.dumps(policy),
        "cni/10-bridge.conflist": json.dumps(network),
        "containerd.toml": containerd(layout, layers, plugins),
        "kubelet.yaml": json.dumps(kubelet),
        "proxy.yaml": json.dumps(proxy),
        "resolv.conf": "",
    }


def containerd(layout: Layout, layers: str, plugins: str) -> str:
    return f"""version = 2
root = "{layers}"
state = "/run/containerd-state"
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layers}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  # Without CAP_SYS_RESOURCE a lower score than our own is refused, and runc ends with "can't get final child's PID from pipe".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{layout.state}/cni"
"""
