"""The first process inside of a cluster: starts its components, says when it is ready, and takes orders on a socket.

Isolated, it is process 1 of a process namespace, so its end is the end of every component, container and mount. Otherwise its
children ask the kernel to be ended with it. It is started by guardian.py, which cleans up what lies outside."""

import ctypes
import json
import os
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import components
import pki
from layout import BRIDGE, NODE, NODE_ADDRESS, SERVICE_RANGE, Layout

# A kubelet sets these for the whole machine, and nothing would put them back. Inside, files lie over them that already hold
# what it wants.
TUNABLES = {
    "vm/overcommit_memory": 1, "vm/panic_on_oom": 0, "kernel/panic": 10, "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000, "kernel/keys/root_maxbytes": 25_000_000,
}
# Folders outside of the state that the kubelet and the network plugins write to; memory lies over them inside.
COVERED = ("/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
START_SECONDS = 180


class Failed(Exception):
    """Its text is for the user."""


def with_parent() -> None:
    """Before exec: the kernel kills this process when its parent ends (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Cluster:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.running: dict[str, int] = {}
        self.known: dict[str, components.Component] = {}
        tls = ssl.create_default_context(cafile=str(layout.state / "pki" / "ca.crt"))
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
        self.token = pki.admin_token(layout)

    def log_of(self, name: str) -> Path:
        return self.layout.state / "log" / f"{name}.log"

    def start(self, component: components.Component, pass_fds: tuple[int, ...] = ()) -> None:
        with open(self.log_of(component.name), "ab") as log:
            child = subprocess.Popen(
                component.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=with_parent, pass_fds=pass_fds,
            )
        self.known[component.name] = component
        self.running[component.name] = child.pid

    def stop(self, name: str) -> None:
        pid = self.running.get(name)
        if pid is None:
            raise Failed(f"{name} does not run; what runs: {' '.join(self.running)}")
        os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + 10
        while name in self.running:
            if time.monotonic() > limit:
                os.kill(pid, signal.SIGKILL)
            self.reap()
            time.sleep(0.02)

    def restart(self, name: str) -> None:
        if name in self.running:
            raise Failed(f"{name} runs already")
        if name not in self.known:
            raise Failed(f"no component is called {name}; there are: {' '.join(self.known)}")
        self.start(self.known[name])

    def reap(self) -> list[str]:
        """The components that ended. Orphans of the namespace are collected too."""
        ended = []
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            for name in [name for name, its in self.running.items() if its == pid]:
                del self.running[name]
                ended.append(name)

    def get(self, path: str) -> bytes | None:
        """What the API server answers, or None while it does not."""
        request = urllib.request.Request(self.layout.api_url + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with self.opener.open(request, timeout=5) as answer:
                return answer.read()
        except OSError:
            return None

    def wait(self, what: str, ready, limit: float) -> None:
        while not ready():
            for name in self.reap():
                raise Failed(f"{name} ended while the cluster started\n{self.tail(name)}")
            if time.monotonic() > limit:
                slow = {"containerd": "containerd", "the node": "kubelet", "the ServiceAccount": "kube-controller-manager"}
                raise Failed(f"{what} was not ready within {START_SECONDS} s\n{self.tail(slow.get(what, 'kube-apiserver'))}")
            time.sleep(0.05)

    def tail(self, name: str) -> str:
        lines = self.log_of(name).read_text(errors="replace").splitlines()[-12:]
        return "\n".join([f"the last lines of {name}:", *lines])

    def node_ready(self) -> bool:
        node = self.get(f"/api/v1/nodes/{NODE}")
        conditions = json.loads(node).get("status", {}).get("conditions", []) if node else []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def runtime_ready(self) -> bool:
        return subprocess.run(ctr(self.layout, "version"), capture_output=True).returncode == 0

    def bring_up(self, listener: int | None) -> None:
        limit = time.monotonic() + START_SECONDS
        for component in components.first(self.layout):
            self.start(component)
        if listener is not None:
            forward = [sys.executable, str(Path(__file__).with_name("forward.py")), str(listener), str(self.layout.api_port)]
            self.start(components.Component("forward", forward), pass_fds=(listener,))
        if not self.layout.control_plane:
            self.wait("containerd", self.runtime_ready, limit)
            pause = ctr(self.layout, "images", "import", str(self.layout.state / "pause.tar"))
            loaded = subprocess.run(pause, capture_output=True, text=True)
            if loaded.returncode != 0:
                raise Failed(f"the pause image could not be imported: {loaded.stderr.strip()}")
        self.wait("the API server", lambda: self.get("/readyz"), limit)
        for component in components.second(self.layout):
            self.start(component)
        if not self.layout.control_plane:
            self.wait("the node", self.node_ready, limit)
        self.wait("the ServiceAccount", lambda: self.get("/api/v1/namespaces/default/serviceaccounts/default"), limit)

    def serve(self) -> None:
        """Takes orders until it is killed: one line `stop NAME` or `start NAME` a connection, answered by `ok` or an error."""
        with socket.socket(socket.AF_UNIX) as orders, selectors.DefaultSelector() as selector:
            orders.bind(str(self.layout.control_socket))
            orders.listen()
            selector.register(orders, selectors.EVENT_READ)
            while True:
                # Often enough for what looks whether an orphan of its own is gone.
                for _ in selector.select(timeout=0.2):
                    with orders.accept()[0] as caller:
                        self.obey(caller)
                for name in self.reap():
                    print(f"{name} ended\n{self.tail(name)}", flush=True)

    def obey(self, caller: socket.socket) -> None:
        caller.settimeout(5)
        try:
            verb, name = caller.makefile().readline().split()
            {"stop": self.stop, "start": self.restart}[verb](name)
            answer = "ok\n"
        except Failed as why:
            answer = f"{why}\n"
        except (OSError, ValueError, KeyError):
            answer = "an order is: stop NAME, or start NAME\n"
        try:
            caller.sendall(answer.encode())
        except OSError:
            pass


def ctr(layout: Layout, *arguments: str) -> list[str]:
    return ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", *arguments]


def isolate(layout: Layout) -> None:
    """Makes the namespaces that this process was started in fit to live in."""
    # The kernel still shows the outer process table here: this is the process id that nsenter needs.
    (layout.state / "pid").write_text(os.readlink("/proc/self"))
    (layout.state / "network").write_text(os.readlink("/proc/self/ns/net"))

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    mount("-t", "proc", "proc", "/proc")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    if not layout.control_plane:
        for folder in COVERED:
            mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
        for name, value in TUNABLES.items():
            file = Path("/run/tunables", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
            mount("--bind", str(file), f"/proc/sys/{name}")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("link", "set", "lo", "up")
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("address", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    # Service addresses exist only in packet filter rules; a route makes packets to them get that far.
    ip("route", "add", SERVICE_RANGE, "dev", BRIDGE)
    for setting in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        try:
            Path("/proc/sys/net", setting).write_text("1")
        except FileNotFoundError:
            # br_netfilter is not loaded, or built in without the setting; only pods that call themselves need it.
            pass


def main() -> None:
    order = json.loads(sys.argv[1])
    report = os.fdopen(order["report"], "w")
    layout = Layout.from_json(order["layout"])
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    os.umask(0o022)
    try:
        if layout.isolated:
            isolate(layout)
        cluster = Cluster(layout)
        cluster.bring_up(order["listener"])
    except (Failed, OSError, subprocess.CalledProcessError) as why:
        report.write(f"{why}\n")
        report.close()
        sys.exit(1)
    report.write("ready\n")
    report.close()
    cluster.serve()


if __name__ == "__main__":
    main()
