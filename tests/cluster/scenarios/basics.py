"""What every scenario's code uses: where things are, what fails a scenario, programs, and looks in the background."""

import os
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from api import Failed

ROOT = Path(__file__).resolve().parent.parent.parent.parent
STATE = Path(os.environ["MODELPROFILE_CLUSTER"])
SYSTEM = "modelprofile-system"
NODE = "node1"


class Unmet(AssertionError):
    """Something that a scenario expects is not so; the text is for people."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Unmet(what)


def run(*command: str, text: str | None = None, check: bool = True, env: dict | None = None) -> str:
    """Output of a program, standard error included; a failure is the scenario's."""
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env={**os.environ, **(env or {})},
    )
    if check and done.returncode != 0:
        raise Unmet(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout.strip()}")
    return done.stdout


def processes(pod: dict) -> dict[int, list[str]]:
    """Those of a pod's containers, by their control groups: process id -> program and arguments."""
    mark, found = f"pod{pod['metadata']['uid']}", {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "cgroup").read_text():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            # It ended meanwhile.
            continue
    return found


def now() -> str:
    """As the API server's audit log writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Watch:
    """`with Watch(look) as watch: ...` looks again and again meanwhile; `watch.seen` has what was seen, repetitions left out."""

    def __init__(self, look: Callable[[], object], every: float = 0.2) -> None:
        self.look, self.every = look, every
        self.seen: list = []
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join(30)

    def _run(self) -> None:
        while not self.end.wait(self.every):
            try:
                now = self.look()
            except (Failed, OSError):
                # The API server or a pod is away; what comes then is what counts.
                continue
            if not self.seen or self.seen[-1] != now:
                self.seen.append(now)
