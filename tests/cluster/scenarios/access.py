"""Who may do what with the API server: the operator by its roles, people by theirs."""

import json
import time

from api import Api, Failed
from basics import ROOT, STATE, SYSTEM, expect, run
from models import Model
from world import World

OPERATOR = f"system:serviceaccount:{SYSTEM}:modelprofile-operator"
ADMIN_KEY = "modelprofile-operator-admin"

# (API group, resource with its subresource, name or empty, verb), as roles and the audit log have them.
Right = tuple[str, str, str, str]


def documented() -> tuple[set[Right], set[Right]]:
    """The tables of docs/operating.md: rights wherever it watches, and those in its own namespace."""
    everywhere: set[Right] = set()
    own: set[Right] = set()
    table: set[Right] | None = None
    group = resource = name = ""
    for line in (ROOT / "docs/operating.md").read_text().splitlines():
        if line.startswith("## "):
            table = everywhere if line == "## Rights of the operator" else None
        elif line == "In its own namespace:":
            table = own
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if table is None or not line.startswith("|") or cells[0] == "API group" or set(cells[0]) == {"-"}:
            continue
        if cells[0]:
            group = "" if cells[0] == "(core)" else cells[0].strip("`")
            resource, _, name = (part.strip("` ") for part in cells[1].partition(" named "))
        table.update((group, resource, name, verb) for verb in cells[2].split(", "))
    expect(len(everywhere) > 30 and len(own) > 4, f"the tables of docs/operating.md can be read: {everywhere} {own}")
    return everywhere, own


def account(world: World, namespace: str, name: str) -> Api:
    """The API server as a ServiceAccount sees it."""
    path = world.api.path("serviceaccounts", namespace, name, "token")
    made = json.loads(world.api.call("POST", path, {"spec": {"expirationSeconds": 600}}))
    return Api(token=made["status"]["token"])


def rights(api: Api, namespace: str) -> set[Right]:
    """All that an account may do in a namespace, but for questions about itself, which everybody may ask."""
    review = json.loads(api.call(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": namespace}},
    ))["status"]
    return {
        (group, resource, name, verb)
        for rule in review["resourceRules"] for group in rule["apiGroups"] for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""] for verb in rule["verbs"]
        if group not in ("authorization.k8s.io", "authentication.k8s.io")
    }


def may(world: World, verb: str, group: str, resource: str, namespace: str = "", name: str = "") -> bool:
    """What the API server says of the operator's account."""
    resource, _, sub = resource.partition("/")
    asked = {"verb": verb, "group": group, "resource": resource, "subresource": sub, "namespace": namespace, "name": name}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}", "system:authenticated"]
    review = {"spec": {"user": OPERATOR, "groups": groups, "resourceAttributes": asked}}
    return json.loads(world.api.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review))["status"]["allowed"]


def operator_rights(world: World) -> str:
    """The operator may do what docs/operating.md says, and nothing else."""
    elsewhere = world.namespace("elsewhere")
    everywhere, own = documented()
    operator = account(world, SYSTEM, "modelprofile-operator")
    for namespace, expected in ((elsewhere, everywhere), ("kube-system", everywhere), (SYSTEM, everywhere | own)):
        actual = rights(operator, namespace)
        expect(actual == expected, f"in {namespace}, the roles and docs/operating.md differ by {sorted(actual ^ expected)}")
    # The same asked in another way: a list of rules may be incomplete, an answer about one is not.
    never = [
        *((verb, "", "secrets", elsewhere, "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
        ("get", "", "secrets", elsewhere, ADMIN_KEY), ("list", "", "secrets", SYSTEM, ""), ("get", "", "secrets", SYSTEM, "another"),
        ("create", "", "pods/exec", elsewhere, ""), ("create", "", "pods", elsewhere, ""), ("delete", "", "pods", elsewhere, ""),
        ("create", "", "pods/eviction", elsewhere, ""), ("get", "", "pods/log", elsewhere, ""), ("get", "", "nodes", "", ""),
        ("create", "", "serviceaccounts/token", SYSTEM, "default"), ("impersonate", "", "users", "", ""),
        ("create", "rbac.authorization.k8s.io", "rolebindings", elsewhere, ""),
        ("bind", "rbac.authorization.k8s.io", "clusterroles", "", ""),
        ("patch", "modelprofile.dev", "modelprofiles", elsewhere, ""), ("delete", "modelprofile.dev", "modelprofiles", elsewhere, ""),
        ("update", "modelprofile.dev", "modelprofiles/finalizers", elsewhere, ""), ("get", "", "persistentvolumeclaims", elsewhere, ""),
        ("update", "coordination.k8s.io", "leases", "kube-system", ""), ("create", "coordination.k8s.io", "leases", elsewhere, ""),
        ("patch", "apiextensions.k8s.io", "customresourcedefinitions", "", ""),
    ]
    allowed = [asked for asked in never if may(world, *asked)]
    expect(not allowed, f"the operator may also: {allowed}")
    expect(may(world, "get", "", "secrets", SYSTEM, ADMIN_KEY), "it may read its key; if not, `no` was no answer before either")
    return f"{len(everywhere)} rights, {len(own)} more in its own namespace, {len(never)} others refused"


def people(world: World) -> None:
    """Who may view a namespace reads ModelProfiles, who may edit it writes and scales them, and neither writes the status."""
    namespace = world.namespace("people")
    world.api.create("modelprofiles", namespace, {
        "apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "metadata": {"name": "smollm2"},
        "spec": {
            "model": {"uri": "file:///models/model.gguf"}, "profiles": [{"name": "quality", "weights": {"format": "FP8"}}],
            "switching": {"mode": "Recommend"}, "scaling": {"mode": "External", "replicas": 1},
        },
    })
    for role in ("view", "edit", "admin"):
        world.api.create("serviceaccounts", namespace, {"metadata": {"name": role}})
        run(
            "kubectl", "create", "rolebinding", role, f"--clusterrole={role}", f"--serviceaccount={namespace}:{role}",
            f"--namespace={namespace}",
        )

    def answers(role: str) -> dict[str, bool]:
        """What the API server lets the role do; nothing of it is kept."""
        api = account(world, namespace, role)
        one, dry = Api.path("modelprofiles", namespace, "smollm2"), "?dryRun=All"
        merge = "application/merge-patch+json"
        asked = {
            "read": ("GET", one, None), "list": ("GET", Api.path("modelprofiles", namespace), None),
            "read status": ("GET", f"{one}/status", None), "read scale": ("GET", f"{one}/scale", None),
            "write": ("PATCH", f"{one}{dry}", {"spec": {"scaling": {"maxReplicas": 2}}}),
            "scale": ("PATCH", f"{one}/scale{dry}", {"spec": {"replicas": 2}}),
            "delete": ("DELETE", f"{one}{dry}", None), "delete all": ("DELETE", Api.path("modelprofiles", namespace) + dry, None),
            "write status": ("PATCH", f"{one}/status{dry}", {"status": {"activeProfile": "quality"}}),
        }
        done = {}
        for what, (method, path, body) in asked.items():
            try:
                api.call(method, path, body, merge if method == "PATCH" else "application/json")
                done[what] = True
            except Failed as why:
                expect(why.code == 403, f"{role}, {what}: {why}")
                done[what] = False
        return done

    reading = {"read", "list", "read status", "read scale"}
    writing = reading | {"write", "scale", "delete"}
    for role, expected in (("view", reading), ("edit", writing), ("admin", writing | {"delete all"})):
        def as_expected(role: str = role, expected: set[str] = expected) -> bool:
            return {what for what, let in answers(role).items() if let} == expected

        # The controller manager puts the parts of these roles together.
        world.wait(f"{role} may do this and no more: {sorted(expected)}", as_expected, 20, every=1)


def one_namespace(world: World) -> str:
    """With operator.watchNamespace one namespace is served, with rights there alone, and others are left alone until it is undone"""
    served, other = world.namespace("watched"), world.namespace("unwatched")
    everywhere, own = documented()
    idle = {"mode": "Recommend"}
    ignored = world.model(other)
    try:
        with world.rights_move():
            world.install(**{"operator.watchNamespace": served, "rbac.aggregate": "false"})
        operator = account(world, SYSTEM, "modelprofile-operator")
        for namespace, expected in ((served, everywhere), (SYSTEM, own), (other, set())):
            actual = rights(operator, namespace)
            expect(actual == expected, f"in {namespace}, rights are others than expected: {sorted(actual ^ expected)}")
        wide = run(
            "kubectl", "get", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/instance=modelprofile", "--output=name",
        )
        expect(wide.strip() in ("", "No resources found"), f"nothing of the release is cluster-wide:\n{wide}")
        ignored.apply(switching=idle)
        world.model(served).apply(switching=idle).serves("quality")
        world.hold(f"nothing happens in {other}", lambda: untouched(ignored), 5)
    finally:
        with world.rights_move():
            world.install()
    begun = time.monotonic()
    ignored.serves("quality")
    return f"the other one serves {time.monotonic() - begun:.1f} s after the operator watches all again"


def untouched(model: Model) -> bool:
    objects = [one for resource in ("pods", "services", "jobs", "events") for one in model.api.list(resource, model.namespace)]
    return "status" not in model.get() and not objects


def audit(world: World) -> str:
    """In all scenarios before, each request of the operator was allowed by its chart's roles, and is in docs/operating.md"""
    everywhere, own = documented()
    used: set[Right] = set()
    wrong: list[str] = []
    count = 0
    with open(STATE / "audit.log") as log:
        for line in log:
            if OPERATOR not in line or (entry := json.loads(line))["user"]["username"] != OPERATOR:
                continue
            if entry["requestURI"].endswith("/selfsubjectrulesreviews"):
                # Asked by `rights` in its name.
                continue
            count += 1
            right, fault = judged(world, entry, everywhere, own)
            used.add(right)
            if fault:
                what = f"{entry['verb']} {entry['requestURI']} at {entry['requestReceivedTimestamp']}"
                wrong.append(f"{fault}: {what}: {entry.get('responseStatus')}")
    expect(not wrong, "\n".join([f"{len(wrong)} of the operator's {count} requests:", *wrong[:20]]))
    watched = ("modelprofile.dev", "modelprofiles", "", "watch") in used
    expect(count > 20 and watched, f"the log has the operator's requests: {count}, {used}")
    # What server-side apply makes is logged as a patch; the right to create is asked for all the same.
    unused = sorted(" ".join(filter(None, right)) for right in (everywhere | own) - used if right[3] != "create")
    return f"{count} requests, {len(used)} different ones; never used: {', '.join(unused) or 'none of the rights'}"


def judged(world: World, entry: dict, everywhere: set[Right], own: set[Right]) -> tuple[Right, str]:
    """The right that a request used, and what is wrong with it."""
    what = entry.get("objectRef", {})
    resource = "/".join(part for part in (what.get("resource", entry["requestURI"]), what.get("subresource")) if part)
    group, verb, name = what.get("apiGroup", ""), entry["verb"], what.get("name", "")
    plain, named = (group, resource, "", verb), (group, resource, name, verb)
    allowed = entry.get("annotations", {}).get("authorization.k8s.io/decision") == "allow"
    if not allowed and not world.rights_moved(entry["requestReceivedTimestamp"]):
        return plain, "was not allowed"
    if plain in everywhere:
        return plain, ""
    for right in (plain, named):
        if right in own and what.get("namespace") == SYSTEM:
            return right, ""
    return plain, "is not in docs/operating.md"


for scenario in (operator_rights, people):
    scenario.api_level = True
audit.last = 2

SCENARIOS = [operator_rights, people, one_namespace, audit]
