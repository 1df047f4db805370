"""A fleet of fakes: ModelProfiles, and a node without a machine on which all their workers run."""

import contextlib
import http.client
import json
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "scenarios"))

from api import Api, Failed  # noqa: E402
from layout import Layout  # noqa: E402

FAKE_PORT = 8001
KUBELET_WRITERS = 6


def profile(name: str, workers: int, placement: dict | None = None) -> dict:
    """A ModelProfile that needs no volume, and so no Job that prepares."""
    return {
        "apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "metadata": {"name": name},
        "spec": {
            "model": {
                "uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct", "servedName": "fleet", "maxContextTokens": 2048,
                "license": {"accepted": "apache-2.0"},
            },
            "profiles": [
                {"name": "quality", "weights": {"format": "FP8"}, "kvCache": {"format": "FP8E4M3"}},
                {"name": "density", "weights": {"format": "INT4"}, "kvCache": {"format": "FP8E4M3"}},
            ],
            "scaling": {"minReplicas": workers, "maxReplicas": workers},
            "placement": {"memoryBudget": "400Mi", **(placement or {})},
        },
    }


def addresses(state: Path) -> Callable[[int], str]:
    """Addresses at which one process can answer for every pod: a range that the cluster's own network takes for its own. Where
    the network is the machine's, the loopback range, which needs no privilege but which EndpointSlices do not take."""
    layout = Layout.from_json((state / "layout.json").read_text())
    if not layout.isolated:
        return lambda number: f"127.90.{number >> 8}.{number & 255}"
    subprocess.run(["ip", "route", "replace", "local", "10.90.0.0/16", "dev", "lo"], check=True)
    return lambda number: f"10.90.{number >> 8}.{number & 255}"


@contextlib.contextmanager
def fakes(address: str) -> Iterator[None]:
    """The process that answers for all workers."""
    program = [sys.executable, str(HERE / "fake_workers.py"), "--address", address, "--port", str(FAKE_PORT)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the fake workers did not start; the line above says why")
            yield
        finally:
            process.terminate()


def fakes_told(address: str = "127.0.0.1") -> dict:
    """What they were asked."""
    with urllib.request.urlopen(f"http://{address}:{FAKE_PORT}/fake", timeout=30) as answer:
        return json.load(answer)


class Watch:
    """Objects as they come and change, in a thread of its own."""

    def __init__(self, api: Api, path: str, take: Callable[[str, dict], None]) -> None:
        self.api, self.path, self.take = api, path, take
        self.ended = threading.Event()
        self.connection: http.client.HTTPSConnection | None = None

    def stop(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError, AttributeError):
            self.connection.sock.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self.ended.is_set():
            self.connection = connection = http.client.HTTPSConnection(self.api.host, self.api.port, context=self.api.tls)
            try:
                connection.request("GET", self.path, headers={"Authorization": f"Bearer {self.api.token}"})
                answer = connection.getresponse()
                if answer.status != 200:
                    raise OSError(answer.read().decode())
                while line := answer.readline():
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        self.take(event["type"], event["object"])
            except (OSError, http.client.HTTPException, ValueError):
                self.ended.wait(1)
            finally:
                connection.close()


class Kubelet:
    """A node without a machine: says of each worker pod on it that it runs and is ready, as a kubelet does after it has started
    one, and lets those go that are deleted.

    Where there is no scheduler it takes every worker pod; where there is one, the pods that tolerate it."""

    name = "fleet"
    placement = {  # noqa: RUF012
        "nodeSelector": {"modelprofile.dev/fleet": "true"}, "tolerations": [{"key": "modelprofile.dev/fleet", "operator": "Exists"}],
    }

    def __init__(self, api: Api, address: Callable[[int], str], scheduler: bool = False) -> None:
        self.api, self.address, self.scheduler = api, address, scheduler
        self.known: set[str] = set()
        self.patched = 0
        self.failed: list[str] = []
        self.watch = Watch(api, f"{api.path('pods')}?watch=1&labelSelector=modelprofile.dev/name", self.take)
        self.waiting: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.ended = threading.Event()

    def __enter__(self) -> "Kubelet":
        room = {"cpu": "100000", "memory": "1000Ti", "pods": "100000"}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.api.create("nodes", None, {
            "metadata": {"name": self.name, "labels": {"modelprofile.dev/fleet": "true"}},
            "spec": {"taints": [{"key": "modelprofile.dev/fleet", "effect": "NoSchedule"}]},
        })
        self.api.patch("nodes", self.name, None, {"status": {
            "capacity": room, "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Fake", "lastHeartbeatTime": now, "lastTransitionTime": now}],
        }}, "status")
        self.api.create("leases", "kube-node-lease", {"metadata": {"name": self.name}, "spec": self._renewed()})
        threading.Thread(target=self._live, daemon=True).start()
        for _ in range(KUBELET_WRITERS):
            threading.Thread(target=self._work, daemon=True).start()
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()
        self.ended.set()
        for _ in range(KUBELET_WRITERS):
            self.waiting.put(None)
        self.api.delete("nodes", self.name)
        self.api.delete("leases", self.name, "kube-node-lease")

    def _live(self) -> None:
        """Else it counts as lost, and its pods as not ready."""
        while not self.ended.wait(4):
            with contextlib.suppress(Failed):
                self.api.patch("leases", self.name, "kube-node-lease", {"spec": self._renewed()})

    def _renewed(self) -> dict:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        return {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now}

    def take(self, kind: str, pod: dict) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        if kind == "DELETED":
            return
        if "deletionTimestamp" in metadata:
            if node == self.name:
                self.waiting.put(lambda: self.api.delete("pods", metadata["name"], metadata["namespace"], grace=0))
        elif metadata["uid"] not in self.known and node == (self.name if self.scheduler else None):
            address = self.address(len(self.known))
            self.known.add(metadata["uid"])
            self.waiting.put(lambda: self._start(pod, address))

    def _start(self, pod: dict, address: str) -> None:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        if not self.scheduler:
            target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
            self.api.call("POST", self.api.path("pods", namespace, name, "binding"), {"metadata": {"name": name}, "target": target})
        self.api.patch("pods", name, namespace, {"status": running(pod, address)}, "status")
        self.patched += 1

    def _work(self) -> None:
        while (order := self.waiting.get()) is not None:
            try:
                order()
            except Failed as why:
                # One that went meanwhile needs nothing.
                if why.code != 404:
                    self.failed.append(str(why))


def running(pod: dict, address: str) -> dict:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": [
            {
                "name": container["name"], "image": container["image"], "imageID": f"docker.io/library/fake@sha256:{'0' * 64}",
                "containerID": f"containerd://{'0' * 64}", "ready": True, "started": True, "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            } for container in pod["spec"]["containers"]
        ],
    }


class Available:
    """ModelProfiles whose status says that they are."""

    def __init__(self, api: Api) -> None:
        self.names: set[str] = set()
        Watch(api, f"{api.path('modelprofiles')}?watch=1", self.take).start()

    def take(self, kind: str, one: dict) -> None:
        name = f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        if kind != "DELETED" and as_wanted(one):
            self.names.add(name)
        else:
            self.names.discard(name)


def as_wanted(one: dict) -> bool:
    """Available, with all its workers and their metrics, and nothing wrong."""
    status = one.get("status", {})
    held = {row["type"]: row["status"] for row in status.get("conditions", [])}
    right = {"Available": "True", "MetricsAvailable": "True", "Degraded": "False", "Progressing": "False"}
    return right.items() <= held.items() and status.get("readyReplicas") == one["spec"]["scaling"]["minReplicas"]
