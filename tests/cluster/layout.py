"""What a cluster is called and where its things lie. Pure: nothing here touches the machine."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

# Addresses inside of the cluster's own network namespace, so they collide with nothing of the machine. The node is the bridge
# that the pods hang on: one address serves as the node's, as their gateway and as the API server's.
BRIDGE = "mpbr0"
NODE_ADDRESS = "10.88.0.1"
POD_RANGE = "10.88.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_OF_API = "10.96.0.1"
NODE = "node1"

# Container images have no registry here: they are imported, and this is the prefix that keeps the runtime from guessing one.
REGISTRY = "localhost"
PAUSE_IMAGE = f"{REGISTRY}/modelprofile-pause:1"


@dataclass(frozen=True)
class Layout:
    """One cluster. Everything it writes lies below `state`."""

    state: Path
    binaries: Path
    """The folder of the tools that were built."""
    assets: Path | None
    """KUBEBUILDER_ASSETS: a tool that is there is taken from there."""
    control_plane: bool
    """Only etcd, the API server and the controller manager: no node, so no pod ever runs."""
    isolated: bool
    """In its own network, mount and process namespaces."""
    api_port: int
    """Of the API server on 127.0.0.1. Isolated, it is the same number inside and, forwarded, outside: one kubeconfig for both."""
    etcd_ports: tuple[int, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> "Layout":
        fields = json.loads(text)
        for name in ("state", "binaries", "assets"):
            fields[name] = fields[name] and Path(fields[name])
        return Layout(**{**fields, "etcd_ports": tuple(fields["etcd_ports"])})

    def tool(self, name: str) -> str:
        if self.assets and (self.assets / name).exists():
            return str(self.assets / name)
        return str(self.binaries / name)

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.state / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"

    @property
    def control_socket(self) -> Path:
        return self.state / "control.sock"

    @property
    def api_url(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def cgroup(self) -> str:
        """The control group that all pods are below: its own, so that removing it can't touch another kubelet's."""
        return cgroup_of(self.state)


def cgroup_of(state: Path) -> str:
    return "modelprofile-" + hashlib.sha256(str(state).encode()).hexdigest()[:8]
