#!/usr/bin/env python3
"""A real one-node Kubernetes cluster for tests, from nothing to a ready node in seconds.

  cluster.py up                      start it, leave it running, and print what a shell needs to use it
  cluster.py down                    stop it; nothing of it stays
  cluster.py run COMMAND...          start one, run COMMAND in it, stop it; the exit code is the command's
  cluster.py enter COMMAND...        run COMMAND in the one that is up
  cluster.py image FILE [--tag TAG]  build the image that FILE describes and load it, as localhost/NAME:TAG
  cluster.py stop|start COMPONENT    end and start again one of its processes, such as kubelet or kube-apiserver
  cluster.py check                   print what can run on this machine: node, or control-plane

With --control-plane there is no node: etcd, the API server and the controller manager, which need no privileges.

Commands run inside of the cluster's network, where pods and Services have addresses and nothing else is reachable. They get
KUBECONFIG, PATH with the tools, CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE for ctr, and MODELPROFILE_CLUSTER, the folder of
the cluster: audit.log there has one JSON object a line for each request that the API server answered, log/ what each
component printed. From outside only the API server is reachable, with the same KUBECONFIG.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("error: python3 is older than 3.10; install a newer one and put it first in PATH")

import guardian
import image
import node
from layout import Layout

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "modelprofile", "cluster")
# Where `up` puts it, and the others look for it; inside of a cluster, that cluster.
DEFAULT_STATE = Path(os.environ.get("MODELPROFILE_CLUSTER") or CACHE / "state")


class Refused(Exception):
    """Its text is for the user."""


def ours(state: Path) -> bool:
    """Whether this program made the folder, which it must have to remove it."""
    return (state / "lock").is_file() and (state.parent == CACHE or (state / "guardian.log").is_file())


def locked(state: Path, create: int = 0) -> int | None:
    """The lock of a state folder, held from now on; None if its guardian lives."""
    lock = os.open(state / "lock", os.O_RDWR | create, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        os.close(lock)
        return None


def lives(state: Path) -> bool:
    """Whether a cluster is up there."""
    try:
        if (lock := locked(state)) is not None:
            os.close(lock)
        return lock is None
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def alone():
    """Between a new folder and its lock, and while abandoned ones are looked for, no other call of this program may do the same."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def clear_abandoned(named: Path) -> None:
    """Removes what clusters left whose guardian was killed. Call it `alone`."""
    for state in {named, DEFAULT_STATE, *CACHE.glob("run-*")}:
        if ours(state) and not lives(state):
            guardian.clear(state)


def may_isolate() -> bool:
    attempt = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    return os.geteuid() == 0 and subprocess.run(attempt, capture_output=True).returncode == 0


def claim(state: Path | None) -> tuple[Path, int]:
    """An empty folder for a cluster, a new one if none is named, and its lock."""
    with alone():
        clear_abandoned(state or DEFAULT_STATE)
        state = state or Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        if ours(state):
            raise Refused(f"a cluster is up already in {state}; stop it with: {own('down', state)}")
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(state.iterdir()):
            raise Refused(f"{state} holds other things; name a folder that is not there yet with --state")
        return state, locked(state, os.O_CREAT)


def begin(state: Path | None, control_plane: bool, logs: Path | None) -> tuple[Layout, subprocess.Popen, int]:
    """Starts a cluster and returns when it is ready, with its guardian and the pipe whose end is the cluster's end."""
    isolated = may_isolate()
    if not isolated and not control_plane:
        raise Refused(
            "a node needs root and its own namespaces (unshare --net --mount --pid), which this machine refuses; "
            "run it as root, or ask for --control-plane, where no pods run"
        )
    build = [str(ROOT / "tests/scripts/cluster-tools.sh"), *(["--control-plane"] if control_plane else [])]
    tools = subprocess.run(build, stdout=subprocess.PIPE, text=True)
    if tools.returncode != 0:
        raise Refused("the cluster's parts are not all there; the message above says what is missing")
    state, lock = claim(state)
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    lifeline, hold = os.pipe()
    reading, report = os.pipe()
    order = {
        "state": str(state), "binaries": tools.stdout.strip(), "assets": assets and os.path.abspath(assets),
        "control_plane": control_plane, "isolated": isolated, "lifeline": lifeline, "report": report, "logs": logs and str(logs),
    }
    with open(state / "guardian.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, HERE / "guardian.py", json.dumps(order)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, pass_fds=(lock, lifeline, report), cwd="/",
        )
    os.write(lock, f"{process.pid}\n".encode())
    for handed in (lock, lifeline, report):
        os.close(handed)
    with os.fdopen(reading) as answers:
        first = answers.readline()
        if first != "ready\n":
            raise Refused(f"the cluster did not start: {first}{answers.read()}".strip())
    return running(state), process, hold


def running(state: Path) -> Layout:
    if not lives(state):
        raise Refused(f"no cluster is up in {state}; start one with: {own('up', state)}")
    return Layout.from_json((state / "layout.json").read_text())


def own(command: str, state: Path) -> str:
    """How to call this program from anywhere."""
    words = [str(HERE / "cluster.py"), command] + ([] if state == DEFAULT_STATE else ["--state", str(state)])
    return shlex.join(words)


def environment(layout: Layout) -> dict[str, str]:
    tools = [str(layout.assets)] if layout.assets else []
    path = ":".join([*tools, str(layout.binaries), os.environ["PATH"], "/usr/sbin:/sbin"])
    return {
        "KUBECONFIG": str(layout.kubeconfig), "PATH": path, "MODELPROFILE_CLUSTER": str(layout.state),
        "CONTAINERD_ADDRESS": str(layout.containerd_socket), "CONTAINERD_NAMESPACE": "k8s.io",
    }


def enter(layout: Layout, command: list[str]) -> int:
    words = command
    if layout.isolated and not inside(layout):
        target = (layout.state / "pid").read_text()
        # The folder is entered again inside: as a folder of the outer mounts its path could not be found out.
        script = 'cd "$1" && shift && exec "$@"'
        words = ["nsenter", f"--target={target}", "--net", "--mount", "--pid", "--"]
        words += ["sh", "-c", script, "sh", os.getcwd(), *command]
    process = subprocess.Popen(words, env={**os.environ, **environment(layout)})

    def pass_on(number: int, _: object) -> None:
        process.send_signal(number)

    # A terminal's interrupt reaches the command by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    status = process.wait()
    return status if status >= 0 else 128 - status


def inside(layout: Layout) -> bool:
    return os.readlink("/proc/self/ns/net") == (layout.state / "network").read_text()


def up(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    layout, _, hold = begin(arguments.state, arguments.control_plane, arguments.logs)
    os.write(hold, b"detach")
    state = layout.state
    print(f"export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}")
    print(f"# ready after {time.monotonic() - started:.1f} s; kubectl and helm: {layout.binaries}")
    print(f"# a shell inside, where pods and Services are reachable: {own('enter', state)} bash")
    print(f"# stop it with: {own('down', state)}")
    return 0


def down(arguments: argparse.Namespace) -> int:
    state = arguments.state
    if ours(state) and lives(state):
        os.kill(int((state / "lock").read_text()), signal.SIGTERM)
        limit = time.monotonic() + 30
        while state.exists():
            if time.monotonic() > limit:
                raise Refused(f"the cluster in {state} did not stop within 30 s; {state}/guardian.log may say why")
            time.sleep(0.05)
    with alone():
        clear_abandoned(state)
    return 0


def run(arguments: argparse.Namespace) -> int:
    # A folder of its own, so that it gets along with one that is up.
    state = None if arguments.state == DEFAULT_STATE else arguments.state
    layout, process, hold = begin(state, arguments.control_plane, arguments.logs)
    try:
        return enter(layout, arguments.command)
    finally:
        os.close(hold)
        process.wait()


def build_image(arguments: argparse.Namespace) -> int:
    values = dict(pair.split("=", 1) for pair in arguments.set)
    if "binaries" not in values:
        ask = ["bash", "-c", "set -euo pipefail; . tests/scripts/lib.sh; need_cargo; binaries"]
        values["binaries"] = subprocess.run(ask, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    built = image.parse(arguments.file.read_text(), values, str(arguments.file))
    with tempfile.TemporaryDirectory() as scratch:
        output = arguments.output or Path(scratch, "image.tar")
        reference = image.archive(built, arguments.tag, output)
        if not arguments.output:
            layout = running(arguments.state)
            subprocess.run(node.ctr(layout, "images", "import", str(output)), check=True, stdout=subprocess.DEVNULL)
    print(reference)
    return 0


def order(arguments: argparse.Namespace) -> int:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(running(arguments.state).control_socket))
        caller.sendall(f"{arguments.what} {arguments.component}\n".encode())
        answer = caller.makefile().read()
    if answer != "ok\n":
        raise Refused(answer.strip())
    return 0


def check(_: argparse.Namespace) -> int:
    print("node" if may_isolate() else "control-plane")
    return 0


def absolute(path: str) -> Path:
    return Path(path).absolute()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def command(name: str, does, *, starts: bool = False) -> argparse.ArgumentParser:
        one = commands.add_parser(name)
        one.set_defaults(does=does)
        one.add_argument("--state", type=absolute, default=DEFAULT_STATE, help="the folder that holds all of the cluster")
        if starts:
            one.add_argument("--control-plane", action="store_true", help="no node: needs no privileges, and no pod runs")
            one.add_argument("--logs", type=absolute, help="a folder to copy the logs to when the cluster ends")
        return one

    command("up", up, starts=True)
    command("down", down)
    command("run", run, starts=True).add_argument("command", nargs=argparse.REMAINDER)
    entering = command("enter", lambda arguments: enter(running(arguments.state), arguments.command))
    entering.add_argument("command", nargs=argparse.REMAINDER)
    building = command("image", build_image)
    building.add_argument("file", type=Path)
    building.add_argument("--tag", default="dev")
    building.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of ${NAME} there; ${binaries} is known")
    building.add_argument("--output", type=Path, help="write the archive there instead of loading it")
    for name in ("stop", "start"):
        command(name, order).add_argument("component")
    command("check", check)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        parsed = parse_arguments()
        if getattr(parsed, "command", None) == []:
            raise Refused(f"{parsed.what} needs a command to run")
        sys.exit(parsed.does(parsed))
    except (Refused, ValueError) as why:
        sys.exit(f"error: {why}")
    except KeyboardInterrupt:
        # What was started sees the pipe end, and goes.
        sys.exit(130)
