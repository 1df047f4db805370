"""Stands outside of a cluster, starts it, and when it ends for whatever reason removes what lies outside of its namespaces.

It holds one end of a pipe. When that ends, so has who asked for the cluster, also by kill -9, and the cluster is taken down;
unless `detach` came through it first, which is how `up` leaves a cluster running. It holds the lock of the state folder as
long as it lives: a folder whose lock is free was left by a guardian that was itself killed, and the next command clears it."""

import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import components
import image
import node
import pki
from layout import Layout, cgroup_of

HERE = Path(__file__).parent
NETWORK_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")


class Ended(Exception):
    """Someone asked this process to end."""


def ports(count: int) -> list[int]:
    """That nothing listens on now; all are held at once, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def cgroup_roots() -> list[Path]:
    """Where control groups are made: one folder for each controller with version 1, one for all with version 2."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root]
    return [folder for folder in root.glob("*") if (folder / "cgroup.procs").exists() and not folder.is_symlink()]


def make_cgroup(name: str) -> None:
    """The kubelet refuses a root that is not there with every controller."""
    for root in cgroup_roots():
        controllers = root / "cgroup.controllers"
        if controllers.exists():
            for controller in controllers.read_text().split():
                try:
                    (root / "cgroup.subtree_control").write_text(f"+{controller}")
                except OSError:
                    # One that can't be delegated here; the kubelet names it if it needs it.
                    pass
        (root / name).mkdir(exist_ok=True)


def remove_cgroup(name: str) -> None:
    # Groups can be removed shortly after their last process ended.
    limit = time.monotonic() + 5
    left = [root / name for root in cgroup_roots() if (root / name).exists()]
    while left and time.monotonic() < limit:
        for root in left:
            for folder, _, _ in os.walk(root, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
        left = [root for root in left if root.exists()]
        time.sleep(0.05)


def clear(state: Path) -> None:
    """Removes what a cluster leaves outside of its namespaces. Its processes have ended."""
    remove_cgroup(cgroup_of(state))
    covered = state / "covered"
    for folder in covered.read_text().split() if covered.exists() else []:
        try:
            os.rmdir(folder)
        except OSError:
            # Someone has put something there since.
            pass
    shutil.rmtree(state, ignore_errors=True)


def filesystem_of(folder: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True).stdout.strip()


def prepare(layout: Layout) -> None:
    """Everything that can be made before the namespaces are."""
    (layout.state / "log").mkdir()
    pki.write(layout)
    # Container layers are overlays, which can't lie on an overlay, such as a container's own root: memory, then.
    layers = "/run/layers" if filesystem_of(layout.state).startswith("overlay") else f"{layout.state}/containerd"
    plugins = next((folder for folder in NETWORK_PLUGINS if Path(folder, "bridge").exists()), NETWORK_PLUGINS[0])
    for name, content in components.files(layout, layers, plugins).items():
        path = layout.state / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    if layout.control_plane:
        return
    image.pause(layout.state / "pause.tar")
    missing = [folder for folder in node.COVERED if not Path(folder).exists()]
    (layout.state / "covered").write_text("\n".join(missing))
    for folder in missing:
        Path(folder).mkdir(parents=True)
    make_cgroup(layout.cgroup)


def watch(child: subprocess.Popen, lifeline: int) -> None:
    """Returns when the cluster is to be taken down."""
    with selectors.DefaultSelector() as selector:
        selector.register(lifeline, selectors.EVENT_READ)
        while child.poll() is None:
            # The timeout only matters for a child that ends by itself.
            if selector.get_map() and not selector.select(timeout=0.2):
                continue
            if not selector.get_map():
                child.wait()
            elif os.read(lifeline, 64).startswith(b"detach"):
                selector.unregister(lifeline)
            else:
                return


def take_down(child: subprocess.Popen, state: Path) -> None:
    """Ends every process of the cluster, and returns when they have ended."""
    try:
        # Process 1 of the namespace: the kernel ends all others in it before `unshare` hears of its end.
        os.kill(int((state / "pid").read_text()), signal.SIGKILL)
    except (OSError, ValueError):
        # There is no namespace, or not yet: what this child started asked to be ended with it, and is ours to await then.
        child.kill()
    child.wait()
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def keep_logs(state: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for log in [*state.glob("log/*.log"), state / "audit.log", state / "guardian.log"]:
        if log.exists():
            shutil.copy(log, folder)


def adopt_orphans() -> None:
    """Processes below this one that lose their parent get this one, not process 1 (prctl PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1)


def main() -> None:
    order = json.loads(sys.argv[1])
    state, lifeline, report = Path(order["state"]), order["lifeline"], order["report"]
    child = None

    def end(*_: object) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    adopt_orphans()
    try:
        api_port, *etcd_ports = ports(3)
        listener = None
        if order["isolated"]:
            listener = socket.create_server(("127.0.0.1", api_port))
            etcd_ports = [2379, 2380]
        layout = Layout(
            state=state, binaries=Path(order["binaries"]), assets=order["assets"] and Path(order["assets"]),
            control_plane=order["control_plane"], isolated=order["isolated"], api_port=api_port, etcd_ports=tuple(etcd_ports),
        )
        (state / "layout.json").write_text(layout.to_json())
        prepare(layout)
        namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"] if layout.isolated else []
        passed = {"layout": layout.to_json(), "report": report, "listener": listener and listener.fileno()}
        child = subprocess.Popen(
            [*namespaces, sys.executable, str(HERE / "node.py"), json.dumps(passed)],
            stdin=subprocess.DEVNULL, preexec_fn=node.with_parent, pass_fds=[report] + ([listener.fileno()] if listener else []),
        )
        if listener:
            listener.close()
        watch(child, lifeline)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as why:
        os.write(report, f"{why}\n".encode())
    except Ended:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if child:
            take_down(child, state)
        if order["logs"]:
            keep_logs(state, Path(order["logs"]))
        clear(state)


if __name__ == "__main__":
    main()
