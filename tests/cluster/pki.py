"""Keys, certificates and tokens of a cluster: as few as the API server and a kubelet need."""

import base64
import secrets
import shutil
import subprocess

import components
from layout import NODE_ADDRESS, SERVICE_OF_API, Layout


def write(layout: Layout) -> None:
    """Into `pki` below the state, and the kubeconfig of the administrator beside it."""
    folder = layout.state / "pki"
    folder.mkdir(mode=0o700)
    _certificate(layout, "ca", "/CN=test", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"], signed=False)
    names = ["DNS:localhost", "DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"]
    addresses = [f"IP:{address}" for address in ("127.0.0.1", NODE_ADDRESS, SERVICE_OF_API)]
    server = ["extendedKeyUsage=serverAuth", "subjectAltName=" + ",".join(names + addresses)]
    _certificate(layout, "apiserver", "/CN=kube-apiserver", server)
    # The API server shows this one to the kubelet, for logs and exec.
    _certificate(layout, "kubelet-client", "/O=system:masters/CN=kube-apiserver", ["extendedKeyUsage=clientAuth"])
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{folder}/sa.key")
    _openssl("pkey", "-in", f"{folder}/sa.key", "-pubout", "-out", f"{folder}/sa.pub")

    ca = base64.b64encode((folder / "ca.crt").read_bytes()).decode()
    rows = []
    for name, (user, groups) in components.USERS.items():
        token = secrets.token_hex(16)
        rows.append(f'{token},{user},{user},"{groups}"\n')
        path = layout.kubeconfig if name == "kubeconfig" else folder / name
        path.write_text(components.kubeconfig(layout, token, ca))
    (folder / "tokens.csv").write_text("".join(rows))


def admin_token(layout: Layout) -> str:
    return (layout.state / "pki" / "tokens.csv").read_text().split(",", 1)[0]


def _certificate(layout: Layout, name: str, subject: str, extensions: list[str], signed: bool = True) -> None:
    folder = layout.state / "pki"
    signer = ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"] if signed else []
    added = [part for extension in extensions for part in ("-addext", extension)]
    # No configuration file: a distribution's would add extensions of its own, such as CA:TRUE on every certificate.
    _openssl(
        "req", "-x509", "-config", "/dev/null", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365",
        "-subj", subject, *signer, *added, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.crt",
    )


def _openssl(*arguments: str) -> None:
    if not shutil.which("openssl"):
        raise RuntimeError("openssl, for the cluster's keys, is missing; install it with: apt-get install -y openssl")
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed (it must be version 3 or newer): {done.stderr.strip()}")
