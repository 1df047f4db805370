"""Whether Dockerfiles and the lists of tests/cluster/images install the same files: for machines that have no container engine
the lists are all there is, so what is tested with them must be what is shipped.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = "/src/target/release/"


def listed(path):
    """A list as (files, user, entrypoint); files map a place in the image to one on the host."""
    files, rest = {}, {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            sys.exit(f"error: {path}:{number}: has {len(words)} words; a line is `HOST-PATH IMAGE-PATH`, `user U:G` or `entrypoint PATH`")
        target = rest if words[0] in ("user", "entrypoint") else files
        # A file goes to one place, but a place has one file: the place is the key.
        key, value = words if target is rest else reversed(words)
        if key in target:
            sys.exit(f"error: {path}:{number}: {key} is there twice; remove one")
        target[key] = value
    return files, rest.get("user"), rest.get("entrypoint")


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
                source = "@bin/" + source.removeprefix(BUILT)
            files[target] = source.removeprefix("/src/")
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entrypoint = re.fullmatch(r'\["([^"]+)"\]', rest).group(1)
        elif word not in ("", "EXPOSE") and not word.startswith("#"):
            sys.exit(f"error: {path}: {word} in the last stage is not in the list's language; extend {Path(__file__).name} and the lists")
    return files, user, entrypoint


def main():
    problems = []
    toolchain = re.search(r'channel = "(.+)"', (ROOT / "rust-toolchain.toml").read_text()).group(1)
    for name in ["operator", "worker"]:
        dockerfile, list_ = ROOT / f"deploy/Dockerfile.{name}", ROOT / f"tests/cluster/images/{name}.txt"
        of_dockerfile, of_list = installed(dockerfile), listed(list_)
        for what, there, here in zip(["files", "user", "entrypoint"], of_dockerfile, of_list):
            if there != here:
                problems.append(f"{dockerfile.name} and {list_.name} differ in their {what}: {there} and {here}")
        files, user, entrypoint = of_list
        if entrypoint not in files:
            problems.append(f"{list_.name}: the entrypoint {entrypoint} is not among its files")
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user or ""):
            problems.append(f"{list_.name}: the user {user} must be numbers, and not root: Kubernetes cannot check a name")
        text = dockerfile.read_text()
        if f"ARG RUST_VERSION={toolchain}\n" not in text:
            problems.append(f"{dockerfile.name}: RUST_VERSION is not the {toolchain} of rust-toolchain.toml")
        for base in re.findall(r"(?m)^FROM (\S+)", text):
            if not base.startswith("${"):
                problems.append(f"{dockerfile.name}: FROM {base} cannot be replaced by an argument")
        for source in files.values():
            if not source.startswith(("@bin/", "/")) and not (ROOT / source).is_file():
                problems.append(f"{list_.name}: {source} is not in the repository")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
