"""Objects that nobody should have written, names that others have, and what a deletion takes along."""

import json
import time
import urllib.request

from api import Failed
from basics import STATE, SYSTEM, expect, run
from load import Load
from models import Model
from telling import all_well, names, told
from world import World

CRD = "modelprofiles.modelprofile.dev"
OWNED = ("deployments", "services", "configmaps", "poddisruptionbudgets", "networkpolicies", "jobs", "pods")


def foreign(world: World, namespace: str, resource: str, name: str, labels: dict | None = None) -> str:
    """An object that is not the operator's; its version."""
    metadata, pod = {"name": name, "labels": labels or {}}, {"labels": {"app": "foreign"}}
    containers = [{"name": "c", "image": "localhost/nothing:1"}]
    value = {
        "configmaps": {"metadata": metadata, "data": {"profile.yaml": "mine", "other": "mine"}},
        "services": {"metadata": metadata, "spec": {"selector": {"app": "foreign"}, "ports": [{"name": "http", "port": 80}]}},
        "deployments": {"metadata": metadata, "spec": {
            "replicas": 0, "selector": {"matchLabels": pod["labels"]},
            "template": {"metadata": pod, "spec": {"containers": containers}},
        }},
    }[resource]
    world.api.create(resource, namespace, value)
    if resource == "deployments":
        world.wait("its controller has seen it", lambda: "observedGeneration" in world.api.get(resource, name, namespace)["status"], 20)
    return world.api.get(resource, name, namespace)["metadata"]["resourceVersion"]


def names_that_are_taken(world: World) -> None:
    """An object of somebody else is never written to, the status says which one is in the way, and the model goes on when it is gone."""
    namespace = world.namespace("taken")
    labels = {"modelprofile.dev/name": "smollm2", "app.kubernetes.io/name": "modelprofile", "app.kubernetes.io/instance": "smollm2"}
    # In the order in which they are needed. The Service has the labels by which the operator finds its own.
    taken = [("configmaps", "ConfigMap", "smollm2-worker", {}), ("deployments", "Deployment", "smollm2", {}), ("services", "Service", "smollm2", labels)]
    versions = {resource: foreign(world, namespace, resource, name, marks) for resource, _, name, marks in taken}
    model = world.model(namespace).apply()
    for resource, kind, name, _ in taken:
        told(
            model, "Degraded", "True", "ApplyFailed",
            f"{kind} {name} exists and belongs to somebody else; rename this ModelProfile, or delete the {kind}",
            seconds=90, event=resource == taken[0][0],
        )
        for other, _, its, _ in taken[[one[0] for one in taken].index(resource):]:
            found = world.api.get(other, its, namespace)
            expect(found["metadata"]["resourceVersion"] == versions[other], f"the foreign {other} was changed: {found}")
        world.api.delete(resource, name, namespace)
        # It would be seen within half a minute; an edit makes a pass at once.
        world.api.patch("modelprofiles", model.name, namespace, {"metadata": {"annotations": {"looked-at": resource}}})
    all_well(model)
    with Load(model.url(), clients=1, tokens=4) as load:
        load.wait_for_answers(1)


def writes(namespace: str, since: int) -> list[str]:
    """What the operator wrote in a namespace, by the API server's audit log from an offset on."""
    found = []
    with open(STATE / "audit.log", "rb") as log:
        log.seek(since)
        for line in log:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # The last line may be in the making.
            about = entry.get("objectRef", {})
            by_operator = entry["user"]["username"].startswith(f"system:serviceaccount:{SYSTEM}:")
            if by_operator and about.get("namespace") == namespace and entry["verb"] in ("create", "update", "patch", "delete"):
                found.append(f"{entry['verb']} {about['resource']} {about.get('name')}")
    return found


def lines_of(world: World) -> int:
    """Lines in the logs of all operators."""
    return sum(len(run("kubectl", "logs", "-n", SYSTEM, pod["metadata"]["name"]).splitlines()) for pod in world.operators())


def restarts(world: World) -> dict[str, int]:
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in world.operators()}


def anything_goes(world: World, begun: dict) -> None:
    """Takes the schema away: the API server stores what it is given."""
    versions = json.loads(json.dumps(begun["spec"]["versions"]))
    for version in versions:
        version["schema"] = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        # It wants to read the number of workers, whatever the spec is.
        version["subresources"] = {"status": {}}
    world.api.patch("customresourcedefinitions", CRD, None, {"spec": {"versions": versions}})


def malformed(good: dict) -> dict[str, tuple[object, str]]:
    """By name: a spec, and the field that the sentence has to name."""
    def but(**fields: object) -> dict:
        return {**good, **fields}

    without = {key: value for key, value in good.items() if key != "profiles"}
    return {
        "text-as-list": (but(profiles="quality"), "profiles"),
        "text-as-number": (but(scaling={"minReplicas": "two"}), "scaling.minReplicas"),
        "list-as-spec": ([1, 2], "spec"),
        "null-spec": (None, "spec"),
        "no-profiles": (without, "profiles"),
        "empty-ladder": (but(profiles=[]), "profiles"),
        "no-such-engine": (but(engine={"type": "Magic"}), "engine.type"),
        "endless-word": (but(engine={"type": "x" * 50_000}), "engine.type"),
        "huge-number": (but(scaling={"minReplicas": 1, "maxReplicas": 10**30}), "scaling.maxReplicas"),
        "below-zero": (but(scaling={"minReplicas": -3}), "scaling.minReplicas"),
        "huge-context": (but(model={**good["model"], "maxContextTokens": 1e300}), "model.maxContextTokens"),
        "no-amount": (but(placement={"memoryBudget": "plenty"}), "placement.memoryBudget"),
        "same-name-twice": (but(profiles=[good["profiles"][0]] * 2), "profiles"),
        f"long-{'x' * 70}": (good, "metadata.name"),
        "with.a.dot": (good, "metadata.name"),
    }


def malformed_objects(world: World) -> str:
    """Objects that break the schema are told which field is wrong, stop nobody else, cost nothing, and serve when they are mended."""
    namespace, elsewhere = world.namespace("malformed"), world.namespace("healthy")
    healthy = world.model(elsewhere).apply()
    all_well(healthy)
    good = {key: value for key, value in healthy.get()["spec"].items()}
    before = world.api.get("customresourcedefinitions", CRD)
    ran = restarts(world)
    every = malformed(good)
    try:
        anything_goes(world, before)
        for name, (spec, _) in every.items():
            value = {"apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "metadata": {"name": name}, "spec": spec}
            # The API server takes a moment to forget the schema.
            world.wait(f"{name} is written", lambda value=value: written(world, namespace, value), 30)
        for name, (_, field) in every.items():
            told(world.model(namespace, name), "Accepted", "False", "Invalid", field)
    finally:
        world.api.patch("customresourcedefinitions", CRD, None, {"spec": {"versions": before["spec"]["versions"]}})
    after = world.api.get("customresourcedefinitions", CRD)
    expect(after["spec"] == before["spec"], "the definition is as it was")

    offset, lines, begun = (STATE / "audit.log").stat().st_size, lines_of(world), time.monotonic()
    healthy.edit({"switching": {"mode": "Pinned", "pinnedProfile": "density"}})
    healthy.serves("density", seconds=30)
    healthy.edit({"switching": {"mode": "Pinned", "pinnedProfile": "quality"}})
    healthy.serves("quality", seconds=30)
    world.hold("the operator runs", lambda: restarts(world) == ran, 5)
    seconds, said, wrote = time.monotonic() - begun, lines_of(world) - lines, writes(namespace, offset)
    expect(not wrote, f"nothing is written for what stays as it is: {wrote}")
    expect(said < 30, f"{said} lines of log in {seconds:.0f} s, for two switches")

    # With the schema in force again, which looks at the whole object whenever a part of it is written.
    mended = world.model(namespace, "text-as-list")
    mended.edit({"profiles": good["profiles"]})
    all_well(mended)
    mended.becomes("Accepted", "True", "Valid")
    still = world.model(namespace, "no-such-engine").condition("Accepted")
    expect(still["status"] == "False", f"the others are as they were: {still}")
    expect(restarts(world) == ran, "the operator did not restart")
    return f"{len(every)} objects; {said} lines of log and {len(wrote)} writes in {seconds:.0f} s"


def written(world: World, namespace: str, value: dict) -> bool:
    """Raises what the API server says while it still has the schema."""
    try:
        world.api.create("modelprofiles", namespace, value)
    except Failed as why:
        if why.code != 409:
            raise
    return True


def owned(world: World, namespace: str, name: str) -> list[str]:
    """All that carries the labels of a ModelProfile."""
    return [
        f"{resource}/{one['metadata']['name']}"
        for resource in OWNED for one in world.api.list(resource, namespace, f"modelprofile.dev/name={name}")
    ]


def metrics(world: World) -> str:
    """Of the operator that leads."""
    leader = world.leader()
    address = [pod["status"]["podIP"] for pod in world.operators() if pod["metadata"]["name"] == leader][0]
    with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=5) as answer:
        return answer.read().decode()


def gone(world: World, model: Model, stays: list[str]) -> None:
    """The ModelProfile is deleted, all that it owned goes, and nothing of it comes back."""
    world.api.delete("modelprofiles", model.name, model.namespace)
    # Pods finish what they have first; there is nothing.
    for pod in model.pods():
        world.api.delete("pods", pod["metadata"]["name"], model.namespace, grace=1)
    world.wait(f"what {model.name} owned is gone", lambda: owned(world, model.namespace, model.name) == stays, 60)
    world.hold("nothing comes back", lambda: owned(world, model.namespace, model.name) == stays, 3)
    world.wait("the operator's metrics forget it", lambda: f'name="{model.name}",namespace="{model.namespace}"' not in metrics(world), 20)


def deletion(world: World) -> None:
    """A deletion takes along what the ModelProfile owned and nothing else, in the middle of a preparation and of a switch too."""
    namespace = world.namespace("deletion")
    foreign(world, namespace, "configmaps", "mine", {"modelprofile.dev/name": "going", "app.kubernetes.io/name": "modelprofile"})
    stays, going = world.model(namespace, "staying").apply(), world.model(namespace, "going").apply()
    world.wait("a pod prepares", lambda: going.pods("prepare"), 30)
    gone(world, going, ["configmaps/mine"])

    # The same name again, at once: what the one before owned may still be there.
    going.apply()
    all_well(going)
    all_well(stays)
    before = names(stays.pods())
    world.api.delete("modelprofiles", "going", namespace)
    going.apply()
    world.wait("the new one serves", lambda: going.status().get("activeProfile") == "quality" and len(going.living()) == 1, 90)

    with Load(stays.url(), clients=1, tokens=8, pause=0.3) as load, Load(going.url(), clients=2, tokens=64):
        load.wait_for_answers(1)
        going.edit({"switching": {"mode": "Pinned", "pinnedProfile": "density"}})
        world.wait("a switch is under way", lambda: going.condition("Progressing").get("reason") == "Switching", 20, every=0.05)
        gone(world, going, ["configmaps/mine"])
        load.wait_for_answers(2)
    expect(not load.outcome.failed and not load.outcome.refused, f"the other one answered all the time: {load.outcome}")
    all_well(stays)
    expect(names(stays.pods()) == before, f"the other one's pods stay: {before} became {names(stays.pods())}")
    expect(world.api.get("persistentvolumeclaims", "models", namespace)["status"]["phase"] == "Bound", "the claim stays")
    expect(world.api.get("configmaps", "mine", namespace)["data"]["other"] == "mine", "the foreign ConfigMap stays")


SCENARIOS = [names_that_are_taken, malformed_objects, deletion]
