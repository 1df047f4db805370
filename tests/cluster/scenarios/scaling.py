"""More and fewer workers: by load, by limits, by others through the scale subresource. And ModelProfiles side by side."""

import http.client
import json
import threading
import time

from basics import expect, run
from load import Load, cache_alone
from models import Model
from story import Story
from world import World

AUTOSCALER = "horizontalpodautoscalers"
OWNED = ("deployments", "services", "configmaps", "poddisruptionbudgets", "networkpolicies", "jobs", "pods")


class Asked:
    """One long answer of one pod, and when it ended."""

    def __init__(self, address: str, tokens: int) -> None:
        self.address, self.tokens = address, tokens
        self.begun = threading.Event()
        self.ended: float | None = None
        self.text = ""
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self.address, 8000, timeout=120)
        body = {"model": "smollm2", "prompt": "The river", "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            for line in connection.getresponse():
                self.text += line.decode()
                self.begun.set()
        except (OSError, http.client.HTTPException) as why:
            self.text += repr(why)
        self.ended = time.monotonic()

    def whole(self) -> bool:
        return "data: [DONE]" in self.text and '"error"' not in self.text


def load_adds_and_removes_a_worker(world: World) -> str:
    """With prefer: Scale load adds a worker and its end removes it again, the profile stays, and no request fails meanwhile"""
    model = world.model(world.namespace("grow"))
    model.apply(
        switching={"prefer": "Scale", "targets": cache_alone(2), "toDensity": {"stabilizationWindowSeconds": 2}},
        scaling={"minReplicas": 1, "maxReplicas": 2, "scaleDown": {"stabilizationWindowSeconds": 4}},
    )
    model.serves("quality")
    first = model.processes()
    start = time.monotonic()
    with Story(model) as story, Load(model.url(), clients=1, tokens=24, pause=0.1) as light:
        # Each holds 4 of 1343 blocks on average: one worker is over its target, and two are below theirs.
        with Load(model.url(), clients=9, tokens=48) as heavy:
            world.wait("a second worker is asked for", lambda: model.status().get("replicas") == 2, 90)
            asked = time.monotonic()
            model.serves("quality", replicas=2)
            came = time.monotonic()
            both = model.processes()
            heavy.wait_for_answers(6, seconds=120)
        light.wait_for_answers(2)
        model.serves("quality", replicas=1, seconds=120)
        # The pod that goes finishes what it has, and what still finds its way to it.
        world.wait("the end of the second pod", lambda: len(model.pods()) == 1, 60)
        went = time.monotonic()
        light.wait_for_answers(3)
    for outcome in (heavy.outcome, light.outcome):
        expect(not outcome.failed and not outcome.refused, f"no request fails: {outcome.failed} {outcome}")
        expect(set(outcome.profiles) == {"quality"}, f"every answer is of quality: {outcome.profiles}")
    # Which of the two goes, Kubernetes chooses.
    expect(len(both) == 2 and first < both, f"one pod more: {first}, then {both}")
    expect(model.processes() < both, f"one of them stays as it was: {both}, and now {model.processes()}")
    expect(story.profiles() == ["quality"], f"the profile stays: {story.profiles()}")
    counts = story.of(lambda status: status.get("replicas"))
    expect(counts == [1, 2, 1], f"one more and one less, once: {counts}")
    story.tells("Hold Stabilizing", "Scale PressureHigh", "Hold WaitingForEffect", "Scale PressureLow", "Hold WithinTargets")
    told = model.told("Scale")
    expect([reason for reason, _ in told] == ["PressureHigh", "PressureLow"], f"Events tell both decisions: {told}")
    expect("2 workers instead of 1 (2 at most)" in told[0][1] and "1 workers are predicted at" in told[1][1], f"as sentences: {told}")
    return (
        f"asked for after {asked - start:.1f} s of load, served {came - asked:.1f} s later, gone {went - came:.1f} s after that; "
        f"{heavy.outcome.answered + light.outcome.answered} requests"
    )


def edited_limits_are_followed(world: World) -> str:
    """Edited limits change the number of workers at once, and a worker that goes finishes its answer"""
    model = world.model(world.namespace("limits")).apply()
    model.serves("quality")
    with Load(model.url(), clients=1, tokens=16, pause=0.1) as load:
        model.edit({"scaling": {"minReplicas": 2, "maxReplicas": 2}})
        model.serves("quality", replicas=2)
        load.wait_for_answers(3)
        pods = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in model.living()}
        long = {name: Asked(address, 150) for name, address in pods.items()}
        for answer in long.values():
            expect(answer.begun.wait(30), f"an answer begins: {answer.text}")
        start = time.monotonic()
        model.edit({"scaling": {"minReplicas": 1, "maxReplicas": 1}})
        world.wait("one worker is left", lambda: len(model.living()) == 1, 10, every=0.1)
        reacted = time.monotonic() - start
        stays = model.living()[0]["metadata"]["name"]
        goes = next(name for name in pods if name != stays)
        expect(long[goes].ended is None, "the answer of the pod that goes is still on its way when it is told to go")
        for answer in long.values():
            answer.thread.join(120)
        world.wait("the end of the pod", lambda: len(model.pods()) == 1, 60)
        load.wait_for_answers(3)
    for name, answer in long.items():
        expect(answer.whole(), f"{name} (goes: {name == goes}) finishes its answer: …{answer.text[-300:]}")
    expect(not load.outcome.failed and not load.outcome.refused, f"no request fails: {load.outcome.failed} {load.outcome}")
    model.serves("quality", replicas=1, seconds=10)
    told = model.told("Scale")
    expect([reason for reason, _ in told] == ["ReplicasRequested"] * 2, f"Events tell both: {told}")
    expect(told[0][1].startswith("2 workers instead of 1") and told[1][1].startswith("1 workers instead of 2"), f"as sentences: {told}")
    return f"a pod is told to go {reacted:.1f} s after the edit, and its answer of 150 tokens is whole"


def others_scale(world: World) -> str:
    """With scaling External an autoscaler and kubectl scale decide about the workers, and the operator never writes the number"""
    namespace = world.namespace("others")
    model = world.model(namespace)
    model.apply(scaling={"mode": "External", "minReplicas": 1, "maxReplicas": 2})
    model.serves("quality")
    world.api.create(AUTOSCALER, namespace, {
        "metadata": {"name": "smollm2"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "name": "smollm2"},
            "minReplicas": 2, "maxReplicas": 2,
            # There is no metrics server: only the least number acts.
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        },
    })
    start = time.monotonic()
    try:
        world.wait("the autoscaler asks for two workers", lambda: model.get()["spec"]["scaling"].get("replicas") == 2, 40)
    except AssertionError as why:
        conditions = world.api.get(AUTOSCALER, "smollm2", namespace)["status"].get("conditions")
        raise AssertionError(f"{why}; it says {conditions}") from None
    asked = time.monotonic() - start
    model.serves("quality", replicas=2)
    scale = json.loads(run("kubectl", "get", "modelprofile/smollm2", "--subresource=scale", "-n", namespace, "-o", "json"))
    expect((scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2), f"/scale has both numbers: {scale}")
    expect(scale["status"]["selector"] == model.status()["selector"], f"/scale has the selector of the status: {scale}")
    chosen = {pod["metadata"]["name"] for pod in world.api.list("pods", namespace, scale["status"]["selector"])}
    workers = {pod["metadata"]["name"] for pod in model.pods()}
    expect(chosen == workers and len(workers) == 2, f"the selector finds the workers and no other pod: {chosen}, {workers}")
    seen = world.api.get(AUTOSCALER, "smollm2", namespace)["status"]
    expect(seen["desiredReplicas"] == 2, f"the autoscaler is told that it was done: {seen}")
    world.api.delete(AUTOSCALER, "smollm2", namespace)
    # Nobody asks for more now, and nobody takes back what was asked for.
    world.hold("the number stays", lambda: model.status()["replicas"] == 2, 3)
    run("kubectl", "scale", "mp/smollm2", "--replicas=1", "-n", namespace)
    model.serves("quality", replicas=1, seconds=30)
    # Held between the limits, and not written back.
    run("kubectl", "scale", "mp/smollm2", "--replicas=0", "-n", namespace)
    world.hold("the least number is held", lambda: len(model.living()) == 1 and model.status()["replicas"] == 1, 3)
    expect(model.get()["spec"]["scaling"]["replicas"] == 0, "what others wrote stays as they wrote it")
    wrote = [
        (entry["manager"], sorted(entry["fieldsV1"])) for entry in model.get()["metadata"]["managedFields"]
        if entry["manager"].startswith("modelprofile-operator")
    ]
    expect(wrote and all(fields == ["f:status"] for _, fields in wrote), f"the operator writes the status alone: {wrote}")
    reasons = {reason for reason, _ in model.told("Scale")}
    expect(reasons == {"ReplicasRequested"}, f"Events tell that others asked: {model.told('Scale')}")
    return f"the autoscaler's minimum was asked for after {asked:.0f} s"


def belongings(model: Model) -> dict[str, dict]:
    """What belongs to a ModelProfile, by kind and name, without what others than the operator change in it."""
    found: dict[str, dict] = {}
    for resource in OWNED:
        for one in model.api.list(resource, model.namespace, f"modelprofile.dev/name={model.name}"):
            metadata = one["metadata"]
            kept = {key: metadata.get(key) for key in ("uid", "generation", "labels", "annotations", "ownerReferences")}
            if resource in ("deployments", "poddisruptionbudgets", "jobs"):
                # Kubernetes's controllers count in them, and note what they saw.
                kept.pop("annotations")
            if resource in ("services", "configmaps", "networkpolicies"):
                # Nobody but the operator writes these: not one write.
                kept["version"] = metadata["resourceVersion"]
            if resource == "pods":
                containers = one["status"].get("containerStatuses", [])
                kept = {"uid": kept["uid"], "restarts": [container["restartCount"] for container in containers]}
            else:
                kept |= {"data": one.get("data"), "spec": one.get("spec")}
            found[f"{resource}/{metadata['name']}"] = kept
    return found


def changed(before: dict[str, dict], after: dict[str, dict]) -> list[str]:
    return [
        f"{name}: {before.get(name)} is now {after.get(name)}" for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def neighbours_are_left_alone(world: World) -> str:
    """ModelProfiles of one name in two namespaces, and two in one namespace, are apart: a pin and a deletion are about one alone"""
    here, there = world.namespace("here"), world.namespace("there")
    # The second's name begins like the first's, and is that of the first's ConfigMap.
    model, second, namesake = world.model(here), world.model(here, "smollm2-worker"), world.model(there)
    others = (second, namesake)
    for one in (model, *others):
        one.apply()
    for one in (model, *others):
        one.serves("quality", seconds=120)
        one.becomes("Progressing", "False", "Stable")
    claim = world.api.get("persistentvolumeclaims", "models", here)["metadata"]["uid"]
    own, theirs = belongings(model), [belongings(one) for one in others]
    kinds = {name.split("/")[0] for name in own}
    expect(kinds >= set(OWNED) - {"jobs"}, f"everything that belongs to it is found: {sorted(own)}")

    model.edit({"switching": {"mode": "Pinned", "pinnedProfile": "density"}})
    model.serves("density", seconds=20)

    def apart() -> bool:
        differences = [line for one, before in zip(others, theirs) for line in changed(before, belongings(one))]
        expect(not differences, f"nothing of the others changes: {differences}")
        return all(one.status()["activeProfile"] == one.status()["desiredProfile"] == "quality" for one in others)

    world.hold("the others keep their profile", apart, 3)
    for one in others:
        expect(not one.status().get("switchHistory") and not one.told("Switch"), f"{one.namespace}/{one.name} has no switch")

    world.api.delete("modelprofiles", model.name, here)
    with Load(second.url(), clients=1, pause=0.3) as one_load, Load(namesake.url(), clients=1, pause=0.3) as other_load:
        # Pods finish what they have, and stay for those who have not heard of it.
        world.wait("the end of all that belonged to it", lambda: not belongings(model), 60)
        world.hold("the others serve on", apart, 2)
        one_load.wait_for_answers(2)
        other_load.wait_for_answers(2)
    for load in (one_load, other_load):
        expect(not load.outcome.failed and not load.outcome.refused, f"no request of the others fails: {load.outcome.failed}")
    left = world.api.get("persistentvolumeclaims", "models", here)
    expect(left and left["metadata"]["uid"] == claim and left["status"]["phase"] == "Bound", f"the claim stays: {left}")
    return f"{len(own)} objects of one went, none of the others' {sum(map(len, theirs))} was written"


SCENARIOS = [load_adds_and_removes_a_worker, edited_limits_are_followed, others_scale, neighbours_are_left_alone]
