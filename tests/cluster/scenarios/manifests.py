"""What users write, judged twice: by `modelprofile validate` and by a real API server; and what the project ships for kubectl."""

import copy
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from api import Failed
from basics import ROOT, expect, run
from verdicts import BAD, GOOD, ONLY_VALIDATE, SUPPORT
from world import World

MINIMAL = {
    "apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "metadata": {"name": "smollm2"},
    "spec": {
        "model": {"uri": "file:///models/model.gguf"},
        "profiles": [{"name": "quality", "weights": {"format": "FP8"}}, {"name": "density", "weights": {"format": "INT4"}}],
    },
}


def edited(edits: dict) -> dict:
    """MINIMAL with values put at paths of its spec (`profiles/0/name`), or of the whole with a leading `/`."""
    manifest = copy.deepcopy(MINIMAL)
    for path, value in edits.items():
        at: object = manifest if path.startswith("/") else manifest["spec"]
        *parents, last = path.strip("/").split("/")
        for part in parents:
            at = at[int(part)] if part.isdigit() else at.setdefault(part, {})
        at[last] = value
    return manifest


def of_validate(manifest: dict) -> str:
    """What `modelprofile validate` finds wrong with it; empty if nothing."""
    done = subprocess.run(
        ["modelprofile", "validate", "--file=-"], input=json.dumps(manifest), capture_output=True, text=True, check=False,
    )
    expect(done.returncode in (0, 1), f"validate ended with {done.returncode}: {done.stderr}")
    return "" if done.returncode == 0 else done.stderr.strip() or done.stdout.strip()


def of_server(world: World, namespace: str, manifest: dict) -> str:
    """What the API server finds wrong with it, asked as kubectl asks: unknown fields are an error."""
    # The server refuses another namespace than that of the address, whatever the definition says.
    to = manifest["metadata"].get("namespace", namespace)
    try:
        world.api.call("POST", world.api.path("modelprofiles", to) + "?dryRun=All&fieldValidation=Strict", manifest)
        return ""
    except Failed as why:
        # Anything else is no verdict.
        expect(why.code in (400, 422), f"{why}")
        return str(why)


def verdicts(world: World) -> str:
    """The API server and `modelprofile validate` give the same verdict on good and bad manifests"""
    namespace = world.namespace("verdicts")
    table = [
        *((name, edits, True, True) for name, edits in GOOD.items()),
        *((name, edits, False, False) for name, edits in BAD.items()),
        *((name, edits, False, True) for _, cases in ONLY_VALIDATE for name, edits in cases.items()),
        *((name, edits, False, True) for name, edits in SUPPORT.items()),
    ]
    names = [name for name, *_ in table]
    expect(len(names) == len(set(names)), "each case has a name of its own")

    def judge(case: tuple) -> list[str]:
        name, edits, here, there = case
        manifest = edited(edits)
        found = (("validate", here, of_validate(manifest)), ("the API server", there, of_server(world, namespace, manifest)))
        return [
            f"{name}: {who} {'refuses it: ' + wrong if wanted else 'takes it, and should not'}"
            for who, wanted, wrong in found if wanted == bool(wrong)
        ]

    with ThreadPoolExecutor(2) as pool:
        wrong = [text for found in pool.map(judge, table) for text in found]
    expect(not wrong, "\n".join([f"{len(wrong)} verdicts are not as the table has them:", *wrong]))
    beyond = sum(len(cases) for _, cases in ONLY_VALIDATE)
    return f"{len(table)} manifests, {beyond} of them beyond what the API server can check"


def immutable(world: World) -> None:
    """The checkpoint of a ModelProfile can not be changed, and everything else can."""
    namespace = world.namespace("immutable")
    # No worker of it is needed; what the operator does with it goes with the namespace.
    world.api.create("modelprofiles", namespace, edited({"switching/mode": "Recommend"}))

    def change(spec: dict) -> str:
        path = world.api.path("modelprofiles", namespace, "smollm2") + "?dryRun=All&fieldValidation=Strict"
        try:
            world.api.call("PATCH", path, {"spec": spec}, "application/merge-patch+json")
            return ""
        except Failed as why:
            expect(why.code == 422, f"{why}")
            return str(why)

    refused = change({"model": {"uri": "file:///models/other.gguf"}})
    expect("model.uri is immutable" in refused, f"another checkpoint is refused: {refused or 'it was taken'}")
    for spec in ({"model": {"servedName": "other"}}, {"scaling": {"maxReplicas": 3}}, {"switching": {"minDwellSeconds": 0}}):
        expect(change(spec) == "", f"{spec} can be changed: {change(spec)}")


FOREIGN = {
    ("monitoring.coreos.com", "v1"): ("ServiceMonitor", "PodMonitor", "PrometheusRule"),
    ("keda.sh", "v1alpha1"): ("ScaledObject",),
}
"""Kinds of other projects in what is shipped: group and version to kinds."""


def foreign_definitions() -> list[dict]:
    """Definitions for FOREIGN that take any spec: these projects' own are not here."""
    return [
        {
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind.lower()}s.{group}"},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()},
                "versions": [{
                    "name": version, "served": True, "storage": True,
                    "schema": {"openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }},
                }],
            },
        }
        for (group, version), kinds in FOREIGN.items() for kind in kinds
    ]


def shipped(world: World) -> str:
    """The API server takes all that the charts render, deploy/install.yaml and every example, without a warning."""
    # The snapshots name other namespaces than the scenario's; what they hold is put into this one.
    namespace = world.namespace("shipped")
    world.api.patch("namespaces", namespace, None, {"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
    }}})
    definitions = foreign_definitions()
    for definition in definitions:
        world.api.create("customresourcedefinitions", None, definition)
    try:
        for definition in definitions:
            name = definition["metadata"]["name"]
            world.wait(f"the definition {name} is served", lambda name=name: established(world, name), 20)
        files, objects = placed(world.scratch / "shipped", namespace)
        # All at once: each kubectl reads all that the API server can do first.
        told = run(
            "kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", f"--namespace={namespace}",
            f"--filename={world.scratch / 'shipped'}",
        )
    finally:
        for definition in definitions:
            world.api.delete("customresourcedefinitions", definition["metadata"]["name"])
    expect("Warning" not in told, f"the API server warns:\n{told}")
    taken = told.count("serverside-applied")
    expect(taken == objects, f"{taken} of {objects} objects were taken:\n{told}")
    return f"{objects} objects of {files} files"


def established(world: World, name: str) -> bool:
    # Null for as long as nobody has looked at the definition.
    conditions = world.api.get("customresourcedefinitions", name).get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def placed(folder: Path, namespace: str) -> tuple[int, int]:
    """Writes what is shipped with another namespace than the file's, so that nothing of it is there yet; how many files and objects."""
    files = [
        *(ROOT / "tests/charts/snapshots").glob("*.yaml"), ROOT / "deploy/install.yaml", *(ROOT / "deploy/examples").glob("*.yaml"),
    ]
    folder.mkdir()
    objects = 0
    for path in files:
        text = path.read_text()
        for written in ("modelprofile-system", "monitoring", "team-a"):
            text = text.replace(f"namespace: {written}\n", f"namespace: {namespace}\n")
        # A namespace that is made in a dry run is not there for what comes into it.
        head = "kind: Namespace\nmetadata:\n  name:"
        text = text.replace(f"{head} modelprofile-system\n", f"{head} {namespace}\n")
        (folder / f"{path.parent.name}-{path.name}").write_text(text)
        objects += sum(line.startswith("kind: ") for line in text.splitlines())
    return len(files), objects


for scenario in (verdicts, immutable, shipped):
    scenario.api_level = True

SCENARIOS = [verdicts, immutable, shipped]
