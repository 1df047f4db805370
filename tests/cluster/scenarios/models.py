"""A ModelProfile as scenarios see it: its spec, its status, its pods, and what is told of it."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

from basics import Unmet, run

if TYPE_CHECKING:
    from world import World


class Model:
    """A ModelProfile."""

    def __init__(self, world: World, namespace: str, name: str) -> None:
        self.world, self.namespace, self.name = world, namespace, name
        self.api = world.api

    def apply(self, **spec: object) -> Model:
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
