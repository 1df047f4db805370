"""The rules of the charts that a snapshot cannot state: check.py --helm PATH --chart FOLDER --kube-version VERSION

Started by tests/scripts/test-charts.sh, when the snapshots are what the chart renders to; what is checked of objects is checked
of them. Prints a line for each rule that is broken; the exit code is 1 then.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from refused import REFUSED

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"
VALUES = CHARTS / "modelprofile-operator/values.yaml"
SCHEMA = CHARTS / "modelprofile-operator/values.schema.json"
GUIDE = ROOT / "docs/operating.md"
# What belongs to somebody else: the parent chart's globals, and parts of a PodSpec that the API server checks.
OPEN = {"global", "crds.global", "operator.affinity.nodeAffinity", "operator.affinity.podAffinity", "operator.affinity.podAntiAffinity"}

problems = []


def problem(text):
    problems.append(text)


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def snapshots():
    return {path.stem: documents(path) for path in sorted((ROOT / "tests/charts/snapshots").glob("*.yaml"))}


def schema_leaves(schema, path=""):
    """Dotted paths of what the schema knows below a value; a map whose keys are the user's is one leaf."""
    if "properties" not in schema:
        yield path
        return
    for name, below in schema["properties"].items():
        yield from schema_leaves(below, f"{path}.{name}" if path else name)


def value_leaves(values, known, path=""):
    """Dotted paths and values, down to what the schema has as a leaf."""
    for name, value in values.items():
        at = f"{path}.{name}" if path else name
        if isinstance(value, dict) and at not in known and value:
            yield from value_leaves(value, known, at)
        else:
            yield at, value


def check_schema_is_closed(schema, path=""):
    if schema.get("type") == "object" and path not in OPEN:
        closed = schema.get("additionalProperties")
        # A map of the user's own keys says what its values are.
        if closed is not False and not isinstance(closed, dict):
            problem(f"values.schema.json: {path or 'the top'} takes unknown keys; add \"additionalProperties\": false")
    for name, below in schema.get("properties", {}).items():
        check_schema_is_closed(below, f"{path}.{name}" if path else name)
    if isinstance(schema.get("items"), dict):
        check_schema_is_closed(schema["items"], f"{path}[]")


def check_values(schema):
    known = set(schema_leaves(schema)) - OPEN
    defaults = yaml.safe_load(VALUES.read_text())
    leaves = dict(value_leaves(defaults, known))
    for path in sorted(set(leaves) - known):
        if any(open_.startswith(f"{path}.") for open_ in OPEN):
            continue
        problem(f"values.yaml: {path} is not in values.schema.json")
    for path in sorted(known - set(leaves)):
        # A map that is empty by default stands for what could be in it.
        if not any(path.startswith(f"{leaf}.") and leaves[leaf] == {} for leaf in leaves):
            problem(f"values.schema.json: {path} is not in values.yaml")
    check_comments(leaves)
    check_every_value_is_rendered(leaves, known)


def check_comments(leaves):
    """Each value has a comment right above it, or the value that it is a part of has."""
    stack, commented, above = [], set(), False
    for line in VALUES.read_text().splitlines():
        key = re.match(r"( *)([^\s#:]+):", line)
        if key and not line.lstrip().startswith("-"):
            stack = stack[: len(key[1]) // 2] + [key[2]]
            if above:
                commented.add(".".join(stack))
        above = line.lstrip().startswith("#")
    groups = set(yaml.safe_load(VALUES.read_text()))
    for path in leaves:
        parents = {path.rsplit(".", n)[0] for n in range(path.count(".") + 1)}
        # The comment on a whole group says nothing about a value in it.
        if not parents & (commented - groups) and path not in commented:
            problem(f"values.yaml: {path} has no comment")


def check_every_value_is_rendered(leaves, known):
    changed = set()
    for path in (ROOT / "tests/charts/values").glob("*.yaml"):
        for leaf, value in value_leaves(yaml.safe_load(path.read_text()) or {}, known):
            if leaf not in leaves or leaves[leaf] != value:
                changed.add(leaf)
    for path in leaves:
        if not any(leaf == path or leaf.startswith(f"{path}.") for leaf in changed):
            problem(f"tests/charts/values: no file changes {path}; add it to one, so that a snapshot shows what it does")


def check_refusals(helm, chart, version):
    for values, expected in REFUSED:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump(values, file)
            file.flush()
            command = [helm, "template", "x", chart, "--kube-version", version, "--values", file.name]
            ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode == 0:
            problem(f"the chart takes {json.dumps(values)}; its schema should not")
        elif expected not in ran.stderr:
            problem(f"the refusal of {json.dumps(values)} does not name {expected}: {ran.stderr.strip()}")


def pods(objects):
    for o in objects:
        if o["kind"] == "Pod":
            yield o["metadata"], o["spec"]
        elif o["kind"] == "Deployment":
            yield o["spec"]["template"]["metadata"], o["spec"]["template"]["spec"]


def check_pods_are_restricted(name, objects):
    for metadata, spec in pods(objects):
        security = spec["securityContext"]
        if security["runAsNonRoot"] is not True or security["seccompProfile"] != {"type": "RuntimeDefault"}:
            problem(f"{name}: a pod's securityContext is below the level restricted")
        if security.get("runAsUser") == 0 or spec.get("hostNetwork") or spec.get("hostPID") or spec.get("volumes"):
            problem(f"{name}: a pod runs as root, or shares something with its node")
        for container in spec["containers"]:
            expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            if container["securityContext"] != expected:
                problem(f"{name}: the container {container['name']} has more rights than it needs")


def check_selectors(name, objects):
    labels = [metadata.get("labels", {}) for metadata, _ in pods(objects)]
    for o in objects:
        spec = o.get("spec", {})
        selector = {
            "Deployment": lambda: spec["selector"]["matchLabels"],
            "Service": lambda: spec["selector"],
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
        }.get(o["kind"], dict)()
        matching = sum(selector.items() <= pod.items() for pod in labels)
        if selector and matching != 1:
            problem(f"{name}: the selector of {o['kind']} {o['metadata']['name']} finds {matching} of the chart's pods, not the operator's alone")


def rules(objects, kinds):
    """(group, resource, name of the object or empty, verb) of all rules of these roles."""
    for o in objects:
        if o["kind"] in kinds and o["metadata"]["name"].startswith("modelprofile-operator"):
            for rule in o["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for name in rule.get("resourceNames", [""]):
                            for verb in rule["verbs"]:
                                yield o["kind"], group, resource, name, verb


def described_rules():
    """The same out of the tables of docs/operating.md; the first is about the ClusterRole, the second about the Role."""
    kind, group, resource, name = None, None, None, ""
    for line in GUIDE.read_text().splitlines():
        if line.startswith("## "):
            kind = {"## Rights of the operator": "ClusterRole"}.get(line)
        elif line.startswith("In its own namespace"):
            kind = "Role"
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if kind is None or len(cells) != 4 or not line.startswith("|") or cells[0] == "API group" or set(cells[0]) == {"-"}:
            continue
        if cells[0]:
            group = "" if cells[0] == "(core)" else cells[0].strip("`")
            resource, _, named = cells[1].partition(" named ")
            resource, name = resource.strip("`"), named.strip("`")
        if not cells[3]:
            problem(f"docs/operating.md: no reason for {cells[2]} of {resource}")
        for verb in cells[2].split(", "):
            yield kind, group, resource, name, verb


def check_rights(rendered):
    actual, described = set(rules(rendered["default"], ("ClusterRole", "Role"))), set(described_rules())
    for rule in sorted(actual ^ described):
        there, not_there = ("the chart", "docs/operating.md") if rule in actual else ("docs/operating.md", "the chart")
        problem(f"the right {' '.join(filter(None, rule))} is in {there} and not in {not_there}")
    # The same rights, in one namespace.
    own = {rule[1:] for rule in rules(rendered["one-namespace"], ("Role",))}
    if own != {rule[1:] for rule in actual}:
        problem("with operator.watchNamespace the operator has other rights than without")
    for name, objects in rendered.items():
        for o in objects:
            if o["kind"] == "ClusterRole" and any("secrets" in r["resources"] or "*" in r["resources"] + r["verbs"] for r in o["rules"]):
                problem(f"{name}: the ClusterRole {o['metadata']['name']} reaches Secrets of other namespaces, or everything")
        if name.endswith("one-namespace") and any(o["kind"].startswith("Cluster") for o in objects):
            problem(f"{name}: an operator of one namespace has cluster-wide objects")


def check_metrics():
    series = (ROOT / "worker/src/metrics/series.rs").read_text()
    known = set(re.findall(r'"((?:vllm:|modelprofile_)\w+)"', series)) | set(re.findall(r"(?m)^\| `(modelprofile_operator_\w+)` \|", GUIDE.read_text()))
    dashboard = json.loads((ROOT / "deploy/dashboards/modelprofile.json").read_text())
    alerts = yaml.safe_load((ROOT / "deploy/dashboards/alerts.yaml").read_text())
    expressions = {f"panel {p['title']}": t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])}
    expressions |= {f"variable {v['name']}": v.get("definition", "") for v in dashboard["templating"]["list"]}
    expressions |= {f"alert {r['alert']}": r["expr"] for group in alerts["groups"] for r in group["rules"]}
    keda = yaml.safe_load((ROOT / "deploy/examples/external-keda-scaledobject.yaml").read_text())
    expressions |= {f"trigger {n}": t["metadata"]["query"] for n, t in enumerate(keda["spec"]["triggers"])}
    for where, expression in expressions.items():
        for metric in re.findall(r"(?:vllm:|modelprofile_)\w+", re.sub(r'"[^"]*"', "", expression)):
            if metric.removesuffix("_bucket") not in known:
                problem(f"{where}: there is no metric {metric}")
    ids = [p["id"] for p in dashboard["panels"]]
    if len(ids) != len(set(ids)) or not all(p.get("description") for p in dashboard["panels"] if p["type"] != "row"):
        problem("the dashboard has a panel without a description or with another's id")
    told = set(re.findall(r"(?m)^\| `(ModelProfile\w+)` \|", GUIDE.read_text()))
    named = {r["alert"] for group in alerts["groups"] for r in group["rules"]}
    for alert in sorted(told ^ named):
        problem(f"the alert {alert} is in one of deploy/dashboards/alerts.yaml and docs/operating.md only")


def check_versions():
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "Cargo.toml").read_text()).group(1)
    charts = {path.parent.name: yaml.safe_load(path.read_text()) for path in CHARTS.glob("*/Chart.yaml")}
    for name, chart in charts.items():
        for field, value in [("version", chart["version"]), ("appVersion", chart["appVersion"])]:
            if value != version:
                problem(f"{name}/Chart.yaml: {field} is {value}, the workspace's is {version}")
    for dependency in charts["modelprofile-operator"]["dependencies"]:
        if dependency["version"] != version:
            problem(f"modelprofile-operator/Chart.yaml: it depends on {dependency['name']} {dependency['version']}, which is {version}")


def check_examples():
    examples = [d for path in (ROOT / "deploy/examples").glob("*.yaml") for d in documents(path)]
    scaling = {d["metadata"]["name"]: d["spec"].get("scaling", {}) for d in examples if d["kind"] == "ModelProfile"}
    for d in examples:
        if d["kind"] == "ModelProfile":
            continue
        target, spec = d["spec"]["scaleTargetRef"], d["spec"]
        limits = (spec.get("minReplicas", spec.get("minReplicaCount")), spec.get("maxReplicas", spec.get("maxReplicaCount")))
        model = scaling.get(target["name"], {})
        if (target["apiVersion"], target["kind"], model.get("mode")) != ("modelprofile.dev/v1alpha1", "ModelProfile", "External"):
            problem(f"the example {d['kind']} {d['metadata']['name']} scales no ModelProfile of the examples with scaling.mode External")
        elif limits != (model["minReplicas"], model["maxReplicas"]):
            problem(f"the example {d['kind']} {d['metadata']['name']} has other limits than its ModelProfile")


def check_no_registry():
    """Where images are pulled from is the user's choice: no file may presume one."""
    hosts = re.compile(r"\b(docker\.io|ghcr\.io|quay\.io|nvcr\.io|gcr\.io|registry\.k8s\.io|mcr\.microsoft\.com|public\.ecr\.aws)\b")
    for folder in ["charts", "deploy", "docs", "tests/charts/values", "tests/charts/snapshots", "tests/cluster/images"]:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix not in (".svg", ".tgz") and (found := hosts.search(path.read_text())):
                problem(f"{path.relative_to(ROOT)}: names the registry {found.group(0)}; leave the host out")


def main():
    parser = argparse.ArgumentParser()
    for option in ["--helm", "--chart", "--kube-version"]:
        parser.add_argument(option, required=True)
    args = parser.parse_args()
    for path in CHARTS.glob("*/values.schema.json"):
        schema = json.loads(path.read_text())
        check_schema_is_closed(schema)
    check_values(json.loads(SCHEMA.read_text()))
    check_refusals(args.helm, args.chart, args.kube_version)
    rendered = snapshots()
    for name, objects in rendered.items():
        check_pods_are_restricted(name, objects)
        check_selectors(name, objects)
    check_rights(rendered)
    check_metrics()
    check_versions()
    check_examples()
    check_no_registry()
    for text in problems:
        print(f"error: {text}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
