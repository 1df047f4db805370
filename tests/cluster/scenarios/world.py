"""What scenarios see and do: the cluster, the installed operator, models in namespaces of their own."""

import contextlib
import copy
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from api import Api, Failed
from basics import NODE, ROOT, STATE, SYSTEM, Unmet, expect, now, processes, run
from models import Model

MODEL_FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
TAG = "test"


class World:
    def __init__(self, binaries: Path, volume: Path | None = None, node: bool = True) -> None:
        self.api = Api()
        self.binaries = binaries
        self.node = node
        self.volume = volume or STATE / "volumes" / "models"
        self.scratch = STATE / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self.made: list[str] = []
        """Namespaces of the scenario that runs."""
        self.everyones: list[str] = []
        """Those of all scenarios until now, also of the ones beside this one."""
        self.installed: list[str] | None = None
        """Values of the release."""
        self.moves = self.scratch / "moves.jsonl"
        """From when to when rights moved; in a file, since the audit log is older than this process where a cluster is kept."""
        os.environ["PATH"] = f"{binaries}:{os.environ['PATH']}"

    def beside(self) -> "World":
        """The same for a scenario that runs at the same time as others."""
        other = copy.copy(self)
        other.made = []
        return other

    def prepare(self) -> None:
        """What all scenarios need, once."""
        if self.node:
            for name in ("operator", "worker"):
                self.image(name, TAG)
            self.lay_volume()
            # Those of an earlier run in the same cluster still have the image of then.
            former = {pod["metadata"]["uid"] for pod in self.operators()}
            for pod in self.operators():
                self.api.delete("pods", pod["metadata"]["name"], SYSTEM, grace=1)
            self.wait(
                "the end of earlier operators", lambda: former.isdisjoint(pod["metadata"]["uid"] for pod in self.operators()), 30,
            )

    def wait(self, what: str, look: Callable[[], object], seconds: float = 60, every: float = 0.2) -> object:
        """Until `look` returns something true, which is returned. What it returned or raised last is part of the failure."""
        limit = time.monotonic() + seconds
        seen: object = None
        while True:
            try:
                if seen := look():
                    return seen
            except (Failed, OSError) as why:
                seen = why
            if time.monotonic() > limit:
                raise Unmet(f"{what}: not within {seconds:.0f} s; last seen: {seen}")
            time.sleep(every)

    def hold(self, what: str, look: Callable[[], object], seconds: float, every: float = 0.5) -> None:
        """As long as that, `look` must return something true."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            expect(look(), f"{what}: not any more")
            time.sleep(every)

    def image(self, name: str, tag: str, **values: object) -> None:
        """Builds and loads an image of tests/cluster/images."""
        pairs = {"binaries": self.binaries, **values}.items()
        run(
            sys.executable, "tests/cluster/cluster.py", "image", f"tests/cluster/images/{name}.txt", "--tag", tag,
            "--state", str(STATE), *(word for name, value in pairs for word in ("--set", f"{name}={value}")),
        )

    def lay_volume(self) -> None:
        """The file of the model on the node, for every namespace's claim; what is made of it stays beside it."""
        self.volume.mkdir(parents=True, exist_ok=True)
        if not (self.volume / MODEL_FILE).exists():
            shutil.copyfile(ROOT / "models" / MODEL_FILE, self.volume / MODEL_FILE)
        for path in (self.volume, self.volume / MODEL_FILE):
            # The user of all worker pods.
            os.chown(path, 65532, 65532)

    def namespace(self, name: str) -> str:
        """A new namespace with a claim `models`. It goes with the scenario."""
        for resource, former in (("namespaces", name), ("persistentvolumes", f"models-{name}")):
            self.wait(f"the end of a former {former}", lambda one=(resource, former): self.api.get(*one) is None, 60)
        self.made.append(name)
        self.everyones.append(name)
        self.api.create("namespaces", None, {"metadata": {"name": name}})
        self.api.create("persistentvolumes", None, {
            "metadata": {"name": f"models-{name}"},
            "spec": {
                "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteMany"], "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "", "hostPath": {"path": str(self.volume)}, "claimRef": {"namespace": name, "name": "models"},
            },
        })
        self.api.create("persistentvolumeclaims", name, {
            "metadata": {"name": "models"},
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": f"models-{name}",
                "resources": {"requests": {"storage": "10Gi"}},
            },
        })
        self.wait("the ServiceAccount", lambda: self.api.get("serviceaccounts", "default", name), 30)
        return name

    def clear(self) -> None:
        """Removes the scenario's namespaces, and ends their workers, which no longer take the processor from the next one. The
        namespaces themselves take ten seconds more to go, which nobody has to wait for."""
        for name in self.made:
            # Who makes pods, then the pods.
            for resource in ("modelprofiles", "deployments", "replicasets", "jobs"):
                for one in self.api.list(resource, name):
                    self.api.delete(resource, one["metadata"]["name"], name)
            self.wait(f"the end of the pods of {name}", lambda name=name: self.emptied(name), 60)
            self.api.delete("namespaces", name)
            self.api.delete("persistentvolumes", f"models-{name}")
        self.made.clear()

    def emptied(self, namespace: str) -> bool:
        """Whether there are no pods. Those that there are end at once: what they would finish, and how long they would linger for
        requests that are still on their way, matters to nobody any more."""
        pods = self.api.list("pods", namespace)
        for pod in pods:
            self.api.delete("pods", pod["metadata"]["name"], namespace, grace=0)
            for process in processes(pod):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        return not pods

    def helm(self, *arguments: str) -> str:
        home = str(self.scratch / "helm")
        return run("helm", *arguments, env={"HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home})

    def charts(self) -> Path:
        """Copies of the charts with their dependencies packed in, so that the working tree stays as it is."""
        folder = self.scratch / "charts"
        if not folder.exists():
            shutil.copytree(ROOT / "charts", folder, ignore=shutil.ignore_patterns("*.tgz"))
            self.helm("dependency", "build", str(folder / "modelprofile-operator"))
        return folder

    @staticmethod
    def values(**more: object) -> list[str]:
        """Arguments of helm for this cluster: images that are loaded, and passes every second."""
        all_values = {
            "image.registry": "localhost", "image.tag": TAG, "image.pullPolicy": "Never",
            "worker.image.registry": "localhost", "worker.image.tag": TAG, "worker.image.pullPolicy": "Never",
            "operator.scrapeIntervalSeconds": 1, **more,
        }
        return [part for key, value in all_values.items() for part in ("--set", f"{key}={value}")]

    def install(self, **more: object) -> None:
        """The operator by its chart, as this tree has it, with other values than the usual ones; `install()` undoes those."""
        wanted = self.values(**more)
        if self.installed == wanted:
            return
        chart = str(self.charts() / "modelprofile-operator")
        # Without a node no pod will ever run; definition and roles are there all the same.
        wait = ["--wait", "--timeout=60s"] if self.node else []
        self.helm("upgrade", "--install", "modelprofile", chart, "--namespace", SYSTEM, "--create-namespace", *wait, *wanted)
        self.installed = wanted
        # The API server answers "storage is (re)initializing" for a moment.
        self.wait("the definition is served", lambda: self.api.list("modelprofiles", SYSTEM) is not None, 20)
        if self.node:
            self.wait("an operator leads", self.leads, 40)

    def uninstall(self) -> None:
        """Takes the release away, if there is one."""
        with self.rights_move():
            self.helm("uninstall", "modelprofile", "--namespace", SYSTEM, "--ignore-not-found", "--wait", "--timeout=60s")
            self.installed = None

    def leads(self) -> bool:
        """Whether the operator that holds the Lease lives."""
        return self.leader() in [pod["metadata"]["name"] for pod in self.operators()]

    def operators(self) -> list[dict]:
        return self.api.list("pods", SYSTEM, "app.kubernetes.io/name=modelprofile-operator,app.kubernetes.io/component=operator")

    def leader(self) -> str | None:
        """Pod of the operator that acts."""
        lease = self.api.get("leases", "modelprofile-operator", SYSTEM)
        return lease and lease["spec"].get("holderIdentity") or None

    def model(self, namespace: str, name: str = "smollm2") -> Model:
        return Model(self, namespace, name)

    def events(self, namespace: str) -> list[dict]:
        return self.api.list("events", namespace)

    def component(self, verb: str, name: str) -> None:
        """Stops or starts a process of the cluster itself."""
        run(sys.executable, "tests/cluster/cluster.py", verb, name, "--state", str(STATE))

    def offer(self, resource: str, count: int | None) -> None:
        """Makes the node say that it has so many of an accelerator, or with None that it knows no such thing. Workers compute on the
        processor whatever they are given."""
        amount = {resource: None if count is None else str(count)}
        self.api.patch("nodes", NODE, None, {"status": {"capacity": amount, "allocatable": amount}}, "status")

    def process(self, pod: dict, program: str) -> int:
        """Of a pod's container, to be killed on the node, past the kubelet; `program` is its file's name."""
        found = [number for number, words in processes(pod).items() if Path(words[0]).name == program]
        expect(len(found) == 1, f"{pod['metadata']['name']} has one process {program}: {found}")
        return found[0]

    @contextlib.contextmanager
    def rights_move(self) -> Iterator[None]:
        """Meanwhile the roles of the chart change or go, so that an operator that is about to end may be refused something."""
        begun = now()
        leaving = {pod["metadata"]["uid"] for pod in self.operators()}
        yield
        self.wait("the former operators end", lambda: not leaving & {pod["metadata"]["uid"] for pod in self.operators()}, 60)
        with open(self.moves, "a") as file:
            file.write(json.dumps((begun, now())) + "\n")

    def rights_moved(self, time: str) -> bool:
        """Whether that was so at a time of the audit log."""
        moves = map(json.loads, self.moves.read_text().splitlines()) if self.moves.exists() else ()
        return any(begun <= time <= ended for begun, ended in moves)
