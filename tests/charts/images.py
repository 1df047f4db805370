"""Whether Dockerfiles and the lists of tests/cluster/images install the same files: for machines that have no container engine
the lists are all there is, so what is tested with them must be what is shipped.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = "/src/target/release/"
# Folders that a list may make since the Dockerfile's base image brings them.
BASE_FOLDERS = {"operator": set(), "worker": {"/tmp"}}


def listed(path):
    """A list as (files, user, entrypoint, folders); files map a place in the image to one on the host."""
    files, folders, user, entrypoint = {}, set(), None, None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "file" and len(words) == 3:
            if words[2] in files:
                sys.exit(f"error: {path}:{number}: {words[2]} is there twice; remove one")
            files[words[2]] = words[1]
        elif words[0] == "folder" and len(words) == 3:
            folders.add(words[1])
        elif words[0] == "user" and len(words) == 2:
            user = words[1]
        elif words[0] == "entrypoint" and len(words) >= 2:
            entrypoint = words[1:]
        elif words != ["image", f"modelprofile-{path.stem}"]:
            sys.exit(f"error: {path}:{number}: {' '.join(words)} has no counterpart in a Dockerfile that this test knows; extend {Path(__file__).name}")
    return files, user, entrypoint, folders


def installed(path):
    """The last stage of a Dockerfile in the same form. Places on the host are those that the build stage stands for."""
    text = path.read_text().replace("\\\n", " ")
    stage = re.split(r"(?m)^FROM .*$", text)[-1]
    files, user, entrypoint = {}, None, None
    for line in stage.splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            source, target = re.fullmatch(r"--from=build (\S+) (\S+)", rest).groups()
            if source.startswith(BUILT):
                source = "${binaries}/" + source.removeprefix(BUILT)
            files[target] = source.removeprefix("/src/")
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entrypoint = json.loads(rest)
        elif word not in ("", "EXPOSE") and not word.startswith("#"):
            sys.exit(f"error: {path}: {word} in the last stage is not in the list's language; extend {Path(__file__).name} and the lists")
    return files, user, entrypoint


def main():
    problems = []
    toolchain = re.search(r'channel = "(.+)"', (ROOT / "rust-toolchain.toml").read_text()).group(1)
    for name in ["operator", "worker"]:
        dockerfile, list_ = ROOT / f"deploy/Dockerfile.{name}", ROOT / f"tests/cluster/images/{name}.txt"
        of_dockerfile, (*of_list, folders) = installed(dockerfile), listed(list_)
        for what, there, here in zip(["files", "user", "entrypoint"], of_dockerfile, of_list):
            if there != here:
                problems.append(f"{dockerfile.name} and {list_.name} differ in their {what}: {there} and {here}")
        files, user, entrypoint = of_list
        if (entrypoint or [None])[0] not in files:
            problems.append(f"{list_.name}: the entrypoint {entrypoint} is not among its files")
        if extra := folders - BASE_FOLDERS[name]:
            problems.append(f"{list_.name}: the base image of {dockerfile.name} has no {', '.join(sorted(extra))}")
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user or ""):
            problems.append(f"{list_.name}: the user {user} must be numbers, and not root: Kubernetes cannot check a name")
        text = dockerfile.read_text()
        if f"ARG RUST_VERSION={toolchain}\n" not in text:
            problems.append(f"{dockerfile.name}: RUST_VERSION is not the {toolchain} of rust-toolchain.toml")
        for base in re.findall(r"(?m)^FROM (\S+)", text):
            if not base.startswith("${"):
                problems.append(f"{dockerfile.name}: FROM {base} cannot be replaced by an argument")
        for source in files.values():
            if not source.startswith(("${binaries}/", "/")) and not (ROOT / source).is_file():
                problems.append(f"{list_.name}: {source} is not in the repository")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
