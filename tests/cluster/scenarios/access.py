"""Who may do what: the operator by its roles, people by theirs, callers of the worker's ports by tokens and keys."""

import base64
import json
import secrets
import time
import urllib.error
import urllib.request

from api import Api, Failed
from world import ROOT, STATE, SYSTEM, Model, World, expect, run

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
        ("create", "rbac.authorization.k8s.io", "rolebindings", elsewhere, ""), ("bind", "rbac.authorization.k8s.io", "clusterroles", "", ""),
        ("patch", "modelprofile.dev", "modelprofiles", elsewhere, ""), ("delete", "modelprofile.dev", "modelprofiles", elsewhere, ""),
        ("update", "modelprofile.dev", "modelprofiles/finalizers", elsewhere, ""), ("get", "", "persistentvolumeclaims", elsewhere, ""),
        ("update", "coordination.k8s.io", "leases", "kube-system", ""), ("create", "coordination.k8s.io", "leases", elsewhere, ""),
        ("patch", "apiextensions.k8s.io", "customresourcedefinitions", "", ""),
    ]
    allowed = [asked for asked in never if may(world, *asked)]
    expect(not allowed, f"the operator may also: {allowed}")
    expect(may(world, "get", "", "secrets", SYSTEM, ADMIN_KEY), "the operator may read its key, or such questions are answered no always")
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
        run("kubectl", "create", "rolebinding", role, f"--clusterrole={role}", f"--serviceaccount={namespace}:{role}", f"--namespace={namespace}")

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
        # The controller manager puts the parts of these roles together.
        world.wait(f"what {role} may do: {sorted(expected)}", lambda: {what for what, let in answers(role).items() if let} == expected, 20, every=1)


def one_namespace(world: World) -> str:
    """With operator.watchNamespace a namespace is served with rights there alone, and another one is left alone until that is undone."""
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
        wide = run("kubectl", "get", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/instance=modelprofile", "--output=name")
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
    objects = [*model.api.list("pods", model.namespace), *model.api.list("services", model.namespace), *model.world.events(model.namespace)]
    return "status" not in model.get() and not objects


def ask(url: str, token: str = "", method: str = "GET", body: object = None) -> tuple[int, str]:
    """Status and text of an answer."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as why:
        return why.code, why.read().decode()


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """Makes tokens for the admin port as operator/src/cluster/tokens.rs does, and others that must be refused."""

    def __init__(self, world: World, seed: bytes) -> None:
        self.message = world.scratch / "message"
        self.key = world.scratch / f"{secrets.token_hex(4)}.der"
        # PKCS#8 of version 1: OpenSSL does not read the public key that version 2 has behind it.
        self.key.write_bytes(bytes.fromhex("302e020100300506032b657004220420") + seed)

    @staticmethod
    def of_operator(world: World) -> "Signer":
        document = base64.b64decode(world.api.get("secrets", ADMIN_KEY, SYSTEM)["data"]["ed25519.pk8"])
        seed = document.partition(bytes.fromhex("04220420"))[2][:32]
        return Signer(world, seed)

    def token(self, audience: str, issued: float, life: int = 60, algorithm: str = "EdDSA") -> str:
        header = base64url(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
        claims = base64url(json.dumps({"aud": audience, "iat": int(issued), "exp": int(issued) + life}).encode())
        self.message.write_text(f"{header}.{claims}")
        signature = self.message.with_suffix(".signature")
        run("openssl", "pkeyutl", "-sign", "-rawin", "-keyform", "DER", "-inkey", str(self.key), "-in", str(self.message), "-out", str(signature))
        return f"{header}.{claims}.{base64url(signature.read_bytes())}"


def admin_port(world: World) -> str:
    """The admin port of a worker takes the operator's tokens for that ModelProfile alone, and the API port has no such thing."""
    namespace = world.namespace("admin")
    model = world.model(namespace).apply(switching={"mode": "Recommend"})
    model.serves("quality")
    (pod,) = model.living()
    address = pod["status"]["podIP"]
    admin = f"http://{address}:8001/admin/v1"
    uid, now = model.get()["metadata"]["uid"], time.time()
    signer = Signer.of_operator(world)
    right = f"{namespace}/smollm2/{uid}"
    good = signer.token(right, now)
    header, claims, signature = good.split(".")
    bad = {
        "none": ("", "send the header"),
        "a word": ("letmein", "three parts"),
        "expired": (signer.token(right, now - 300), "`exp` has passed"),
        "of tomorrow": (signer.token(right, now + 86400), "is in the future"),
        "that lives for a day": (signer.token(right, now, 86400), "300 seconds"),
        "for another ModelProfile": (signer.token(f"{namespace}/other/{uid}", now), "`aud`"),
        "for a former ModelProfile of this name": (signer.token(f"{namespace}/smollm2/4f1d9f3e-0000-4000-8000-000000000000", now), "`aud`"),
        "of another namespace": (signer.token(f"other/smollm2/{uid}", now), "`aud`"),
        "by another key": (Signer(world, secrets.token_bytes(32)).token(right, now), "no key"),
        "without a signature": (f"{header}.{claims}.", "no key"),
        "that says it needs none": (f"{base64url(json.dumps({'alg': 'none'}).encode())}.{claims}.", "EdDSA"),
        "of another algorithm": (signer.token(right, now, algorithm="HS256"), "EdDSA"),
        "with other claims": (f"{header}.{base64url(json.dumps({'aud': right, 'iat': int(now), 'exp': int(now) + 61}).encode())}.{signature}", "no key"),
    }
    calls = (("GET", "state", None), ("PUT", "profile", {"profile": "density"}), ("PUT", "quality", {}), ("POST", "drain", None))
    for name, (token, sentence) in bad.items():
        for method, path, body in calls:
            code, text = ask(f"{admin}/{path}", token, method, body)
            expect(code == 401 and sentence in text, f"{method} {path} with a token {name}: {code} {text}")
    code, text = ask(f"{admin}/state", good)
    expect(code == 200, f"the state, with the right token: {code} {text}")
    state = json.loads(text)
    expect((state["phase"], state["activeProfile"]) == ("Ready", "quality"), f"none of these calls did anything: {text}")
    code, text = ask(f"{admin}/profile", good, "PUT", {"profile": "density"})
    # The report tells; a look at the state may come after the operator has taken that back.
    report = json.loads(text) if code == 200 else {}
    expect((report.get("to"), report.get("outcome")) == ("density", "Completed"), f"another profile, with the right token: {code} {text}")
    for method, path, body in calls:
        code, text = ask(f"http://{address}:8000/admin/v1/{path}", good, method, body)
        expect(code == 404, f"{method} {path} on the API port: {code} {text}")
    for path in ("metrics", "livez", "readyz"):
        code, text = ask(f"http://{address}:8001/{path}")
        expect(code == 200, f"/{path} is open to probes and scrapers: {code} {text}")
    return f"{len(bad) * len(calls)} calls refused"


def api_keys(world: World) -> str:
    """With apiKeysSecretRef a request needs a key, other keys are taken and dropped without a restart, and switching goes on."""
    namespace = world.namespace("keys")

    def keys(**values: str | None) -> dict:
        return {name: value and base64.b64encode(value.encode()).decode() for name, value in values.items()}

    world.api.create("secrets", namespace, {"metadata": {"name": "keys"}, "data": keys(first="sesame-1\n", second="sesame-2")})
    model = world.model(namespace).apply(apiKeysSecretRef={"name": "keys"}, switching={"mode": "Pinned", "pinnedProfile": "quality"})
    model.serves("quality")
    (before,) = model.living()
    api = f"http://{before['status']['podIP']}:8000/v1"

    def completes(key: str) -> int:
        return ask(f"{api}/completions", key, "POST", {"model": "smollm2", "prompt": "The river", "max_tokens": 2})[0]

    for key, expected in (("", 401), ("sesame", 401), ("sesame-3", 401), ("sesame-1", 200), ("sesame-2", 200)):
        code = completes(key)
        expect(code == expected, f"a request with the key `{key}` is answered with {code}, not {expected}")
    expect((ask(f"{api}/models")[0], ask(f"{api}/models", "sesame-1")[0]) == (401, 200), "the list of models asks for a key as well")
    world.api.patch("secrets", "keys", namespace, {"data": keys(first=None, third="sesame-3")})
    changed = time.monotonic()
    # The kubelet writes the volume anew when it next looks at the pod, which may take a minute.
    world.wait("the new key is taken", lambda: completes("sesame-3") == 200, 120, every=1)
    taken = time.monotonic() - changed
    expect((completes("sesame-1"), completes("sesame-2")) == (401, 200), "the key that was removed is refused, and the one that stayed is taken")
    model.edit({"switching": {"pinnedProfile": "density"}})
    model.serves("density", seconds=30)
    expect((completes(""), completes("sesame-3")) == (401, 200), "keys hold in the other profile")
    (after,) = model.living()
    restarts = after["status"]["containerStatuses"][0]["restartCount"]
    expect((after["metadata"]["uid"], restarts) == (before["metadata"]["uid"], 0), "the worker was not restarted")
    return f"a new key was taken after {taken:.0f} s"


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
                wrong.append(f"{fault}: {entry['verb']} {entry['requestURI']} at {entry['requestReceivedTimestamp']}: {entry.get('responseStatus')}")
    expect(not wrong, "\n".join([f"{len(wrong)} of the operator's {count} requests:", *wrong[:20]]))
    expect(count > 20 and ("modelprofile.dev", "modelprofiles", "", "watch") in used, f"the log has the operator's requests: {count}, {used}")
    unused = sorted(" ".join(right) for right in (everywhere | own) - used)
    return f"{count} requests, {len(used)} of {len(everywhere | own)} rights used, not {', '.join(unused)}"


def judged(world: World, entry: dict, everywhere: set[Right], own: set[Right]) -> tuple[Right, str]:
    """The right that a request used, and what is wrong with it."""
    what = entry.get("objectRef", {})
    resource = "/".join(part for part in (what.get("resource", entry["requestURI"]), what.get("subresource")) if part)
    group, verb, name = what.get("apiGroup", ""), entry["verb"], what.get("name", "")
    plain, named = (group, resource, "", verb), (group, resource, name, verb)
    if entry.get("annotations", {}).get("authorization.k8s.io/decision") != "allow" and not world.rights_moved(entry["requestReceivedTimestamp"]):
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

SCENARIOS = [operator_rights, people, admin_port, api_keys, one_namespace, audit]
