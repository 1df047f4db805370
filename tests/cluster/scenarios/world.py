"""What scenarios see and do: the cluster, the installed operator, models in namespaces of their own."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from api import Api, Failed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
STATE = Path(os.environ["MODELPROFILE_CLUSTER"])
SYSTEM = "modelprofile-system"
MODEL_FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
TAG = "test"


class Unmet(AssertionError):
    """Something that a scenario expects is not so; the text is for people."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Unmet(what)


def run(*command: str, text: str | None = None, check: bool = True, env: dict | None = None) -> str:
    """Output of a program, standard error included; a failure is the scenario's."""
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env={**os.environ, **(env or {})},
    )
    if check and done.returncode != 0:
        raise Unmet(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout


def now() -> str:
    """As the API server's audit log writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
        """Removes the scenario's namespaces, and waits until their workers no longer take the processor from the next one. The
        namespaces themselves take ten seconds more to go, which nobody has to wait for."""
        for name in self.made:
            # Who makes pods, then the pods, which need not finish what they have.
            for resource in ("modelprofiles", "deployments", "jobs"):
                for one in self.api.list(resource, name):
                    self.api.delete(resource, one["metadata"]["name"], name)
            self.wait(f"the end of the pods of {name}", lambda name=name: self.emptied(name), 60)
            self.api.delete("namespaces", name)
            self.api.delete("persistentvolumes", f"models-{name}")
        self.made.clear()

    def emptied(self, namespace: str) -> bool:
        """Whether there are no pods; those that there are need not finish what they have."""
        pods = self.api.list("pods", namespace)
        for pod in pods:
            told = pod["metadata"].get("deletionTimestamp")
            if told is None or pod["metadata"].get("deletionGracePeriodSeconds") != 1:
                self.api.delete("pods", pod["metadata"]["name"], namespace, grace=1)
            elif datetime.now(timezone.utc) - datetime.fromisoformat(told.replace("Z", "+00:00")) > timedelta(seconds=3):
                # The linger of a foreign engine is a minute, whatever it is granted; only the object can be made to go.
                self.api.delete("pods", pod["metadata"]["name"], namespace, grace=0)
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

    def leads(self) -> bool:
        """Whether the operator that holds the Lease lives."""
        return self.leader() in [pod["metadata"]["name"] for pod in self.operators()]

    def operators(self) -> list[dict]:
        return self.api.list("pods", SYSTEM, "app.kubernetes.io/name=modelprofile-operator,app.kubernetes.io/component=operator")

    def leader(self) -> str | None:
        """Pod of the operator that acts."""
        lease = self.api.get("leases", "modelprofile-operator", SYSTEM)
        return lease and lease["spec"].get("holderIdentity") or None

    def model(self, namespace: str, name: str = "smollm2") -> "Model":
        return Model(self, namespace, name)

    def events(self, namespace: str) -> list[dict]:
        return self.api.list("events", namespace)

    def component(self, verb: str, name: str) -> None:
        """Stops or starts a process of the cluster itself."""
        run(sys.executable, "tests/cluster/cluster.py", verb, name, "--state", str(STATE))

    def process(self, pod: dict, program: str) -> int:
        """Of a pod's container, to be killed on the node, past the kubelet; `program` is its file's name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if Path(words[0].decode()).name == program and f"pod{pod['metadata']['uid']}" in (process / "cgroup").read_text():
                    found.append(int(process.name))
            except (FileNotFoundError, ProcessLookupError):
                # It ended meanwhile.
                continue
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


class Watch:
    """`with Watch(look) as watch: ...` looks again and again meanwhile; `watch.seen` has what was seen, repetitions left out."""

    def __init__(self, look: Callable[[], object], every: float = 0.2) -> None:
        self.look, self.every = look, every
        self.seen: list = []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join(30)

    def _run(self) -> None:
        while not self.end.wait(self.every):
            try:
                now = self.look()
            except (Failed, OSError):
                # The API server or a pod is away; what comes then is what counts.
                continue
            if not self.seen or self.seen[-1] != now:
                self.seen.append(now)


class Model:
    """A ModelProfile."""

    def __init__(self, world: World, namespace: str, name: str) -> None:
        self.world, self.namespace, self.name = world, namespace, name
        self.api = world.api

    def apply(self, **spec: object) -> "Model":
        """deploy/examples' model for the CPU under this name; each keyword replaces a field of its spec."""
        example = json.loads(run(
            "kubectl", "create", "--dry-run=client", "--output=json", "--filename=deploy/examples/smollm2-cluster.yaml",
        ))
        example["metadata"] = {"name": self.name, "namespace": self.namespace}
        example["spec"].update(spec)
        run("kubectl", "apply", "--filename=-", text=json.dumps(example))
        return self

    def edit(self, spec: dict) -> None:
        """A merge patch of its spec."""
        self.api.patch("modelprofiles", self.name, self.namespace, {"spec": spec})

    def get(self) -> dict:
        found = self.api.get("modelprofiles", self.name, self.namespace)
        if found is None:
            raise Unmet(f"there is no ModelProfile {self.namespace}/{self.name}")
        return found

    def status(self) -> dict:
        return self.get().get("status", {})

    def condition(self, kind: str) -> dict:
        found = [condition for condition in self.status().get("conditions", []) if condition["type"] == kind]
        return found[0] if found else {}

    def becomes(self, kind: str, status: str, reason: str | None = None, seconds: float = 60) -> dict:
        def look() -> object:
            now = self.condition(kind)
            return now if now.get("status") == status and reason in (None, now["reason"]) else None
        try:
            return self.world.wait(f"{self.name}: {kind}={status} {reason or ''}", look, seconds)
        except Unmet as why:
            raise Unmet(f"{why}; it is {self.condition(kind)}") from None

    def serves(self, profile: str, replicas: int = 1, seconds: float = 90) -> None:
        """Every worker serves with the profile, and there are that many."""
        def look() -> object:
            status = self.status()
            return (status.get("activeProfile"), status.get("readyReplicas"), status.get("replicas")) == (profile, replicas, replicas)
        try:
            self.world.wait(f"{self.name}: {replicas} workers serve with {profile}", look, seconds)
        except Unmet as why:
            raise Unmet(f"{why}; the status: {json.dumps(self.status())}") from None

    def pods(self, component: str = "worker") -> list[dict]:
        return self.api.list(
            "pods", self.namespace, f"modelprofile.dev/name={self.name},app.kubernetes.io/component={component}",
        )

    def living(self) -> list[dict]:
        return [pod for pod in self.pods() if not pod["metadata"].get("deletionTimestamp")]

    def url(self) -> str:
        """Of the Service."""
        service = self.api.get("services", self.name, self.namespace)
        return f"http://{service['spec']['clusterIP']}:8000"

    def events(self, reason: str) -> list[str]:
        """Sentences of its Events with this reason."""
        return [
            event.get("note", "") for event in self.world.events(self.namespace)
            if event["reason"] == reason and event["regarding"]["name"] == self.name
        ]

    def told(self, action: str) -> list[tuple[str, str]]:
        """Reason and sentence of the operator's Events with this action about it, in the order in which they happened."""
        ours = [
            event for event in self.world.events(self.namespace)
            if event.get("reportingController") == "modelprofile-operator" and event["action"] == action
            and event["regarding"]["name"] == self.name
        ]
        return [(event["reason"], event.get("note", "")) for event in sorted(ours, key=lambda event: event["eventTime"])]

    def processes(self) -> set[tuple[str, int]]:
        """Its workers by what another pod, or a restart of the container, would change."""
        return {
            (pod["metadata"]["uid"], sum(container["restartCount"] for container in pod["status"].get("containerStatuses", [])))
            for pod in self.pods()
        }

    def answers(self, seconds: float = 30) -> None:
        """A request through the Service is answered: kube-proxy, which may lag by seconds, knows its address."""
        body = json.dumps({"model": "smollm2", "prompt": "Hello", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"{self.url()}/v1/completions", body, {"Content-Type": "application/json"})

        def answered() -> bool:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        self.world.wait(f"{self.name} answers", answered, seconds)
