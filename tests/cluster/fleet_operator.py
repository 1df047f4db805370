"""An operator as a process, and what is measured of it: memory, processor, the time of its passes, what it writes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE / "scenarios"))

from api import Api  # noqa: E402

SYSTEM, ACCOUNT = "modelprofile-system", "modelprofile-operator"
METRICS, HEALTH = "127.0.0.1:18080", "127.0.0.1:18081"
WRITES = {"create", "update", "patch", "delete", "deletecollection"}


class Audit:
    """The API server's log of requests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def position(self) -> int:
        return self.path.stat().st_size

    def writes(self, position: int, user: str, apart: Collection[str] = ()) -> list[str]:
        """What a user has written since, but for the Lease that says who leads, and but for the namespaces `apart`; several of a
        kind are one line."""
        found: Counter[str] = Counter()
        with open(self.path, "rb") as log:
            log.seek(position)
            for line in log:
                # Most are others'.
                if user.encode() not in line:
                    continue
                event = json.loads(line)
                target = event.get("objectRef", {})
                if target.get("namespace") in apart:
                    continue
                if event["user"]["username"] == user and event["verb"] in WRITES and target.get("resource") != "leases":
                    kind = "/".join(target[part] for part in ("resource", "subresource") if target.get(part))
                    found[f"{event['verb']} {kind} {target.get('namespace')}/{target.get('name')}"] += 1
        return [f"{line} ({count} times)" if count > 1 else line for line, count in found.items()]


class Usage:
    """Memory and processor of a process."""

    def __init__(self, pid: int) -> None:
        self.folder = Path("/proc", str(pid))

    def _kilobytes(self, field: str) -> float:
        rows = dict(line.split(":", 1) for line in (self.folder / "status").read_text().splitlines())
        return float(rows[field].split()[0])

    def resident(self) -> float:
        """MB."""
        return self._kilobytes("VmRSS") * 1024 / 1e6

    def anonymous(self) -> float:
        """What of it is no file that is mapped, such as the program itself."""
        return self._kilobytes("RssAnon") * 1024 / 1e6

    def peak(self) -> float:
        return self._kilobytes("VmHWM") * 1024 / 1e6

    def seconds(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_of(name: str, state: Path) -> int:
    """The cluster's component of that name."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_text()
                if Path(words.split("\0")[0]).name == name and str(state) in words:
                    return int(folder.name)
    raise RuntimeError(f"no {name} runs for {state}")


@dataclass
class Passes:
    """The operator's histogram of the time of a pass."""

    buckets: dict[float, float]
    """Upper bound in seconds -> how many took no longer."""
    failed: int

    @property
    def count(self) -> int:
        return int(self.buckets[float("inf")])

    def __sub__(self, before: "Passes") -> "Passes":
        return Passes({bound: number - before.buckets[bound] for bound, number in self.buckets.items()}, self.failed - before.failed)

    def millis(self, share: float) -> float:
        """The time that so many took at most, by straight lines between the bounds."""
        goal, lower, below = share * self.count, 0.0, 0.0
        for bound, number in sorted(self.buckets.items()):
            if number >= goal:
                part = (goal - below) / (number - below) if number > below else 1
                return round(1000 * (lower + (bound - lower) * part), 1) if bound != float("inf") else float("inf")
            lower, below = bound, number
        return float("inf")


class Operator:
    """An operator as a process, with the account and the rights that the installed one has."""

    user = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"

    def __init__(self, api: Api, program: Path, state: Path) -> None:
        self.api, self.program, self.state = api, program, state
        self.process: subprocess.Popen | None = None
        self.arguments: list[str] = []

    def install(self) -> None:
        """deploy/install.yaml without its pods, also over the chart, which has the same objects."""
        run = ["kubectl", "apply", "--server-side", "--force-conflicts", "--filename", str(ROOT / "deploy/install.yaml")]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        self.api.delete("deployments", ACCOUNT, SYSTEM)
        subprocess.run(
            ["kubectl", "wait", "--for=condition=Established", "crd/modelprofiles.modelprofile.dev", "--timeout=30s"],
            check=True, stdout=subprocess.DEVNULL,
        )
        asked = self.api.call("POST", self.api.path("serviceaccounts", SYSTEM, ACCOUNT, "token"), {"spec": {"expirationSeconds": 86400}})
        config = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
        config["users"][0]["user"] = {"token": json.loads(asked)["status"]["token"]}
        (self.state / "operator-kubeconfig").write_text(json.dumps(config))

    def start(self, *arguments: str) -> None:
        self.arguments = list(arguments) or self.arguments
        command = [
            str(self.program), "operator", "--leader-election", "--operator-namespace", SYSTEM, "--metrics-address", METRICS,
            "--health-address", HEALTH, *self.arguments,
        ]
        with open(self.state / "log" / "operator.log", "ab") as log:
            environment = {**os.environ, "KUBECONFIG": str(self.state / "operator-kubeconfig")}
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.usage = Usage(self.process.pid)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def lives(self) -> None:
        """A kubelet would start it again, and the figures would be those of two."""
        if self.process and self.process.poll() is not None:
            words = (self.state / "log" / "operator.log").read_text().splitlines()[-1:]
            sys.exit(f"error: the operator ended with {self.process.returncode}: {' '.join(words)}")

    def text(self) -> list[str]:
        """Its metrics."""
        self.lives()
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=30) as answer:
            return answer.read().decode().splitlines()

    def leads(self) -> bool:
        try:
            return "modelprofile_operator_leader 1" in self.text()
        except OSError:
            return False

    def passes(self) -> Passes:
        buckets: dict[float, float] = {}
        failed = 0
        for line in self.text():
            series, _, value = line.rpartition(" ")
            if series.startswith("modelprofile_operator_reconcile_seconds_bucket"):
                buckets[float(series.split('le="')[1].split('"')[0])] = float(value)
            elif series.startswith("modelprofile_operator_reconciles_total") and '"ok"' not in series:
                failed += int(value)
        return Passes(buckets, failed)
