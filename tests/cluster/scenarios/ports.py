"""Who is let in at the ports of a worker: the operator by its tokens, clients by keys."""

import base64
import json
import secrets
import time
import urllib.error
import urllib.request

from basics import SYSTEM, expect, run
from world import World


ADMIN_KEY = "modelprofile-operator-admin"


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
        run(
            "openssl", "pkeyutl", "-sign", "-rawin", "-keyform", "DER", "-inkey", str(self.key), "-in", str(self.message),
            "-out", str(signature),
        )
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
        "for a former ModelProfile of this name": (signer.token(f"{namespace}/smollm2/4f1d9f3e-0000", now), "`aud`"),
        "of another namespace": (signer.token(f"other/smollm2/{uid}", now), "`aud`"),
        "by another key": (Signer(world, secrets.token_bytes(32)).token(right, now), "no key"),
        "without a signature": (f"{header}.{claims}.", "no key"),
        "that says it needs none": (f"{base64url(json.dumps({'alg': 'none'}).encode())}.{claims}.", "EdDSA"),
        "of another algorithm": (signer.token(right, now, algorithm="HS256"), "EdDSA"),
        "with other claims": (f"{header}.{signer.token(right, now, 61).split('.')[1]}.{signature}", "no key"),
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
    switched = (report.get("to"), report.get("outcome")) == ("density", "Completed")
    expect(switched, f"another profile, with the right token: {code} {text}")
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
    expect((completes("sesame-1"), completes("sesame-2")) == (401, 200), "the key that went is refused, the one that stayed is taken")
    model.edit({"switching": {"pinnedProfile": "density"}})
    model.serves("density", seconds=30)
    expect((completes(""), completes("sesame-3")) == (401, 200), "keys hold in the other profile")
    (after,) = model.living()
    restarts = after["status"]["containerStatuses"][0]["restartCount"]
    expect((after["metadata"]["uid"], restarts) == (before["metadata"]["uid"], 0), "the worker was not restarted")
    return f"a new key was taken after {taken:.0f} s"


SCENARIOS = [admin_port, api_keys]
