"""Container images without a container engine: one layer of files from this machine, in an OCI archive.

An image is described by a file of lines, `#` starting a comment and ${NAME} standing for a value that the caller gives:

    image NAME                       without registry and tag
    entrypoint PATH [ARGUMENT...]
    user UID:GID
    file HOST-PATH IMAGE-PATH        with the shared libraries that it is linked against, where the linker looks for them
    folder IMAGE-PATH MODE           empty; parents of files need no line
    env NAME=VALUE
"""

import hashlib
import io
import json
import platform
import shutil
import string
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from layout import PAUSE_IMAGE, REGISTRY

HERE = Path(__file__).parent
OCI = "application/vnd.oci.image"


@dataclass
class Image:
    name: str = ""
    entrypoint: list[str] = field(default_factory=list)
    user: str = "65532:65532"
    files: dict[str, str] = field(default_factory=dict)
    """Image path -> host path."""
    folders: dict[str, int] = field(default_factory=dict)
    """Image path -> mode."""
    env: list[str] = field(default_factory=list)


def parse(text: str, values: dict[str, str], source: str) -> Image:
    """Errors name `source` and the line."""
    image = Image()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = string.Template(line.split("#", 1)[0]).substitute(values).split()
            match words:
                case []:
                    pass
                case ["image", name]:
                    image.name = name
                case ["entrypoint", *command] if command:
                    image.entrypoint = command
                case ["user", user]:
                    image.user = user
                case ["file", host, path] if path.startswith("/"):
                    image.files[path] = host
                case ["folder", path, mode] if path.startswith("/"):
                    image.folders[path] = int(mode, 8)
                case ["env", variable] if "=" in variable:
                    image.env.append(variable)
                case _:
                    raise ValueError(f"this is no line of an image; {HERE.name}/image.py says what is")
        except KeyError as name:
            raise ValueError(f"{source}:{number}: no value for {name}; give it with --set {name.args[0]}=VALUE") from None
        except ValueError as why:
            raise ValueError(f"{source}:{number}: {why}") from None
    if not image.name or not image.entrypoint:
        raise ValueError(f"{source}: an image needs a line `image` and a line `entrypoint`")
    return image


def libraries(program: str) -> dict[str, str]:
    """Image path -> host path of what a program is linked against: the loader finds them under the same path."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True)
    if listed.returncode != 0:
        # Static, or not a program.
        return {}
    found = {}
    for line in listed.stdout.splitlines():
        if "not found" in line:
            raise ValueError(f"{program} needs a library that this machine lacks: {line.strip()}")
        paths = [word for word in line.split() if word.startswith("/")]
        found.update({path: path for path in paths[-1:]})
    return found


def archive(image: Image, tag: str, output: Path) -> str:
    """Writes the archive and returns the reference that pods use. The same files give the same bytes."""
    reference = f"{REGISTRY}/{image.name}:{tag}"
    files = dict(image.files)
    for host in image.files.values():
        files.update(libraries(host))
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    with tempfile.TemporaryDirectory() as scratch:
        layer = Path(scratch, "layer")
        with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as tar:
            _fill(tar, files, image.folders, Path(scratch))
        digest = hashlib.sha256()
        with open(layer, "rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
        layer_digest = f"sha256:{digest.hexdigest()}"
        blobs: dict[str, bytes] = {}

        def blob(kind: str, value: object) -> dict[str, object]:
            data = json.dumps(value, sort_keys=True).encode()
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            blobs[digest] = data
            return {"mediaType": f"{OCI}.{kind}+json", "digest": digest, "size": len(data)}

        config = blob("config.v1", {
            "architecture": architecture, "os": "linux",
            "config": {
                "Entrypoint": image.entrypoint, "User": image.user, "WorkingDir": "/",
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", *image.env],
            },
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        })
        manifest = blob("manifest.v1", {
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config,
            "layers": [{"mediaType": f"{OCI}.layer.v1.tar", "digest": layer_digest, "size": layer.stat().st_size}],
        })
        index = {"schemaVersion": 2, "manifests": [{
            **manifest, "platform": {"architecture": architecture, "os": "linux"},
            "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag},
        }]}
        with tarfile.open(output, "w", format=tarfile.GNU_FORMAT) as tar:
            _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add(tar, "index.json", json.dumps(index, sort_keys=True).encode())
            for digest, data in sorted(blobs.items()):
                _add(tar, "blobs/" + digest.replace(":", "/"), data)
            _add(tar, "blobs/" + layer_digest.replace(":", "/"), layer)
    return reference


def pause(output: Path) -> None:
    """The archive of the pause image, compiled here."""
    with tempfile.TemporaryDirectory() as scratch:
        program = f"{scratch}/pause"
        if not shutil.which("cc"):
            raise RuntimeError("cc, for the pause image, is missing; install it with: apt-get install -y gcc libc6-dev")
        command = ["cc", "-Os", "-static", "-s", "-o", program, str(HERE / "images/pause.c")]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode != 0:
            raise RuntimeError(f"the pause image did not compile; with glibc it needs libc6-dev:\n{built.stderr}")
        source = HERE / "images/pause.txt"
        archive(parse(source.read_text(), {"pause": program}, source.name), PAUSE_IMAGE.rsplit(":", 1)[1], output)


def _fill(tar: tarfile.TarFile, files: dict[str, str], folders: dict[str, int], scratch: Path) -> None:
    parents = {str(parent): 0o755 for path in [*files, *folders] for parent in Path(path).parents if str(parent) != "/"}
    for path, mode in sorted({**parents, **folders}.items()):
        entry = tarfile.TarInfo(path.lstrip("/") + "/")
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        tar.addfile(entry)
    for path, host in sorted(files.items()):
        source = Path(host)
        if not source.is_file():
            raise ValueError(f"{host}, which is to be {path} in an image, is not there; build it first")
        executable = source.stat().st_mode & 0o111
        stripped = scratch / "stripped"
        # Symbols of a dev build are most of its size, and would be copied twice for each import.
        strip = ["strip", "-o", str(stripped), host]
        if executable and shutil.which("strip") and subprocess.run(strip, capture_output=True).returncode == 0:
            source = stripped
        _add(tar, path.lstrip("/"), source, 0o755 if executable else 0o644)


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    if isinstance(content, Path):
        entry.size = content.stat().st_size
        with open(content, "rb") as opened:
            tar.addfile(entry, opened)
    else:
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
