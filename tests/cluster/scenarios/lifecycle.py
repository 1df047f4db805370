"""The chart: installed, upgraded, tested, uninstalled."""

import json
import re
import shutil
import time
from pathlib import Path

from api import Failed
from basics import ROOT, SYSTEM, expect, run
from load import Load
from models import Model
from world import World

DEFINITION = "modelprofiles.modelprofile.dev"
# What the definition of the version before has not: an optional field, and a column.
FIELD, COLUMN = "runtimeClassName", "Pressure"


def without(text: str, head: str) -> str:
    """YAML without the entry that starts with this line: the line, and what is indented below it."""
    lines = text.splitlines(keepends=True)
    (start,) = (at for at, line in enumerate(lines) if line.strip() == head)

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    end = start + 1
    while indent(lines[end]) > indent(lines[start]):
        end += 1
    return "".join(lines[:start] + lines[end:])


def chart_before(world: World) -> Path:
    """The charts as version 0.0.1 could have been."""
    folder = world.scratch / "charts-before"
    # Of an attempt before.
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "charts", folder, ignore=shutil.ignore_patterns("*.tgz"))
    version = re.search(r"(?m)^version: (.+)$", (folder / "modelprofile-crds/Chart.yaml").read_text())[1]
    for chart in folder.glob("*/Chart.yaml"):
        chart.write_text(chart.read_text().replace(version, "0.0.1"))
    definition = folder / f"modelprofile-crds/templates/{DEFINITION}.yaml"
    text = without(definition.read_text(), f"{FIELD}:")
    definition.write_text(without(text, "- description: Load over target, in percent"))
    world.helm("dependency", "build", str(folder / "modelprofile-operator"))
    return folder / "modelprofile-operator"


def defined(world: World) -> tuple[bool, bool]:
    """Whether the definition has FIELD and COLUMN."""
    version = world.api.get("customresourcedefinitions", DEFINITION)["spec"]["versions"][0]
    placement = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["placement"]
    return FIELD in placement["properties"], COLUMN in [column["name"] for column in version["additionalPrinterColumns"]]


def takes_field(world: World, model: Model) -> bool:
    """Whether the API server takes an object with FIELD, as kubectl asks for it; nothing of it is kept."""
    path = world.api.path("modelprofiles", model.namespace, model.name) + "?dryRun=All&fieldValidation=Strict"
    try:
        world.api.call("PATCH", path, {"spec": {"placement": {FIELD: "nvidia"}}}, "application/merge-patch+json")
        return True
    except Failed as why:
        expect(f'unknown field "spec.placement.{FIELD}"' in str(why), f"{why}")
        return False


def identity(model: Model) -> dict:
    """What must stay the same where nothing is replaced."""
    metadata = model.get()["metadata"]
    return {
        "ModelProfile": (metadata["uid"], metadata["generation"]),
        "Deployments": [
            (one["metadata"]["uid"], one["metadata"]["generation"]) for one in model.api.list("deployments", model.namespace)
        ],
        "workers": [
            (pod["metadata"]["name"], pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in model.pods()
        ],
    }


def stays(model: Model, before: dict, when: str) -> None:
    after = identity(model)
    expect(after == before, f"{when}, nothing of the model was replaced; before: {json.dumps(before)}, after: {json.dumps(after)}")


def direct(model: Model) -> str:
    """Address of its one worker: whether kube-proxy has heard of it is not the question."""
    (pod,) = model.living()
    return f"http://{pod['status']['podIP']}:8000"


def never_installed(world: World) -> None:
    """Neither release nor definition, as where the version before is installed for the first time."""
    world.uninstall()
    world.api.delete("customresourcedefinitions", DEFINITION)
    world.wait("the end of the definition", lambda: world.api.get("customresourcedefinitions", DEFINITION) is None, 30)


def upgrade(world: World) -> str:
    """An upgrade brings the new definition and the new operator, while models stay as they are and serve on"""
    world.image("operator", "before")
    never_installed(world)
    world.helm(
        "install", "modelprofile", str(chart_before(world)), "--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout=60s",
        *world.values(**{"image.tag": "before"}),
    )
    world.wait("an operator leads", world.leads, 40)
    expect(defined(world) == (False, False), f"the definition before has no {FIELD} and no column {COLUMN}")
    # Nothing but the upgrade may move anything.
    model = world.model(world.namespace("upgrade")).apply(switching={"mode": "Recommend"})
    model.serves("quality")
    expect(not takes_field(world, model), f"{FIELD} is not known before")
    former = {pod["metadata"]["name"] for pod in world.operators()}
    model.becomes("Available", "True")
    before = identity(model)
    with Load(direct(model), clients=1, tokens=4, pause=0.2) as load:
        load.wait_for_answers(1)
        begun = time.monotonic()
        world.install()
        world.wait("an operator of the new version leads", lambda: world.leads() and world.leader() not in former, 30)
        led = time.monotonic() - begun
        world.wait("the former operators end", lambda: not former & {pod["metadata"]["name"] for pod in world.operators()}, 40)
        images = {pod["spec"]["containers"][0]["image"] for pod in world.operators()}
        expect(images == {"localhost/modelprofile-operator:test"}, f"operators run the new image: {images}")
        expect(defined(world) == (True, True), f"the definition has {FIELD} and the column {COLUMN}")
        expect(takes_field(world, model), f"{FIELD} is known")
        load.wait_for_answers(3)
    outcome = load.outcome
    expect(not outcome.failed and not outcome.refused, f"the model served on: {outcome}")
    stays(model, before, "after the upgrade")
    model.edit({"scaling": {"maxReplicas": 2}})
    generation = model.get()["metadata"]["generation"]
    world.wait("the operator goes on", lambda: model.status()["observedGeneration"] == generation, 20)
    told = world.helm("test", "modelprofile", "--namespace", SYSTEM, "--timeout=60s")
    expect("Phase:          Succeeded" in told, f"helm test succeeds:\n{told}")
    return f"the new version led after {led:.1f} s; {outcome.answered} requests answered meanwhile, none failed"


def left(world: World) -> set[str]:
    """All that is in the operator's namespace or belongs to the release, but for what every namespace has."""
    def of(namespaced: bool, *more: str) -> list[str]:
        kinds = run("kubectl", "api-resources", "--verbs=list", f"--namespaced={namespaced}".lower(), "--output=name").split()
        wanted = [kind for kind in kinds if not kind.startswith("events")]
        # Warnings about old kinds stand between the names.
        told = run("kubectl", "get", ",".join(wanted), "--output=name", "--ignore-not-found", *more)
        return re.findall(r"(?m)^[a-z0-9.]+/\S+$", told)

    everywhere = {"serviceaccount/default", "configmap/kube-root-ca.crt"}
    found = of(True, f"--namespace={SYSTEM}") + of(False, "--selector=app.kubernetes.io/instance=modelprofile")
    return set(found) - everywhere


def settled(world: World) -> set[str] | None:
    """What is left, once it is the same twice."""
    first = left(world)
    time.sleep(1)
    return first if left(world) == first else None


def uninstall(world: World) -> str:
    """Uninstalling leaves the definition, models, a Secret and a Lease; models serve on, and the next operator takes them over"""
    model = world.model(world.namespace("uninstall")).apply(switching={"mode": "Pinned", "pinnedProfile": "quality"})
    model.serves("quality")
    model.becomes("Available", "True")
    before = identity(model)
    expected = {
        f"customresourcedefinition.apiextensions.k8s.io/{DEFINITION}", "secret/modelprofile-operator-admin",
        "lease.coordination.k8s.io/modelprofile-operator",
    }
    expect(left(world) > expected, "what is looked for is found while it is there")
    begun = time.monotonic()
    world.uninstall()
    ended = time.monotonic() - begun
    # EndpointSlices go with their Service, a moment later.
    rest = world.wait("an end", lambda: settled(world), 20)
    expect(rest == expected, f"left are {sorted(rest)}, expected {sorted(expected)}")
    with Load(direct(model), clients=1, tokens=4) as load:
        load.wait_for_answers(5)
    expect(not load.outcome.failed, f"the model serves on without an operator: {load.outcome}")
    stays(model, before, "without an operator")
    world.install()
    model.edit({"switching": {"pinnedProfile": "density"}})
    model.serves("density", seconds=40)
    now = identity(model)
    expect(now["workers"] == before["workers"], f"the new operator took the workers over: {before['workers']}, {now['workers']}")
    expect(now["Deployments"] == before["Deployments"], f"it changed no Deployment: {before}, {now}")
    return f"uninstalled in {ended:.1f} s; {load.outcome.answered} requests answered without an operator"


upgrade.installs = True
# What others have prepared saves the upgrade's model a minute.
uninstall.last = upgrade.last = 1

SCENARIOS = [uninstall, upgrade]
