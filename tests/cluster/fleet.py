#!/usr/bin/env python3
"""How large it may get: an operator with thousands of ModelProfiles whose workers are fakes that it really asks. Runs inside of
a cluster without a node (cluster.py run --control-plane):

  fleet.py --operator PROGRAM [--count 1000,5000] [--steady-seconds 300]

The controller manager makes pods of the Deployments, and this program writes their status as a kubelet would, each with an
address of its own, at all of which one process answers (fake_workers.py). The operator runs beside, with the rights of
deploy/install.yaml. Prints figures as it goes, and ends with one line `operator: {...}`; goals that were missed are in it."""

import argparse
import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "scenarios"))

from api import Api  # noqa: E402
from fleet_operator import Audit, Operator, Usage, process_of  # noqa: E402
from fleet_parts import Available, Kubelet, addresses, fakes, fakes_told, profile  # noqa: E402

PER_NAMESPACE = 100
MEMORY_GOALS = {1000: 60, 5000: 150}
"""MB that it may take with so many ModelProfiles."""
PASS_GOAL = 50
"""Milliseconds that 99 of 100 steady passes may take, with up to a thousand."""
STALE = 3
"""Intervals after which a worker's metrics do not count any more (crate modelprofile-policy, `Rules`)."""
MOST_PRINTED = 5
"""Writes of a steady window that are shown; there should be none."""
begun = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - begun:7.1f} s  {text}", flush=True)


def until(what: str, look, seconds: float, operator: Operator, every: float = 0.5) -> float:
    """Waits until `look` returns true, and tells how far it is now and then; how long it took."""
    start = told = time.monotonic()
    while True:
        done, so_far = look()
        if done:
            return time.monotonic() - start
        now = time.monotonic()
        operator.lives()
        if now - start > seconds:
            sys.exit(f"error: {what}: not within {seconds:.0f} s: {so_far}")
        if now - told > 10:
            told = now
            say(f"  {what}: {so_far}")
        time.sleep(every)


def missed(run: dict, interval: float) -> list[str]:
    """Goals that were not reached, each as a sentence."""
    found = []
    memory = min((goal for count, goal in MEMORY_GOALS.items() if run["count"] <= count), default=None)
    for phase in ("steady", "after_restart"):
        told = run[phase]
        if memory and told["resident_mb"] > memory:
            found.append(f"{phase}: {told['resident_mb']} MB, and {memory} is the goal")
        if run["count"] <= 1000 and told["pass_ms"]["p99"] > PASS_GOAL:
            found.append(f"{phase}: a pass takes {told['pass_ms']['p99']} ms (p99), and {PASS_GOAL} is the goal")
        if told["longest_since_asked_seconds"] > STALE * interval:
            found.append(f"{phase}: a worker was not asked for {told['longest_since_asked_seconds']} s, so that its metrics are stale")
        if told["writes"]:
            found.append(f"{phase}: {told['writes']} objects were written although nothing happened")
    if run["restart"]["writes"]:
        found.append(f"a new operator wrote {run['restart']['writes']} objects although nothing had happened")
    return found


class Fleet:
    def __init__(self, program: Path, state: Path) -> None:
        self.api = Api()
        self.audit = Audit(state / "audit.log")
        self.kubelet = Kubelet(self.api, addresses(state))
        self.operator = Operator(self.api, program, state)
        self.pool = ThreadPoolExecutor(8)
        self.server = Usage(process_of("kube-apiserver", state))
        self.available = Available(self.api)
        self.names: list[tuple[str, str]] = []

    @property
    def pods(self) -> int:
        return 2 * len(self.names) + 2

    def grow(self, count: int) -> None:
        """Up to that many ModelProfiles of two workers; the first has four."""
        new = [(f"fleet-{number // PER_NAMESPACE}", f"model-{number}") for number in range(len(self.names), count)]
        for namespace in dict.fromkeys(namespace for namespace, _ in new):
            if self.api.get("namespaces", namespace) is None:
                self.api.create("namespaces", None, {"metadata": {"name": namespace}})

        def make(target: tuple[str, str]) -> None:
            self.api.create("modelprofiles", target[0], profile(target[1], 4 if target == ("fleet-0", "model-0") else 2))

        list(self.pool.map(make, new))
        self.names += new

    def reconciled(self) -> dict:
        """Waits until all are."""
        count = len(self.names)
        limit = 300 + count * 0.6
        ready = until("pods got ready", lambda: (self.kubelet.patched >= self.pods, f"{self.kubelet.patched} of {self.pods}"), limit, self.operator)
        say(f"{self.kubelet.patched} pods have a status, {ready:.1f} s after the last ModelProfile was made")

        look = lambda: (len(self.available.names) >= count, f"{len(self.available.names)} of {count}")  # noqa: E731
        after = until("ModelProfiles are Available", look, limit, self.operator)
        if self.kubelet.failed:
            say(f"  {len(self.kubelet.failed)} statuses of pods were not taken: {self.kubelet.failed[0]}")
        return {"pods_ready_after_last_made": round(ready, 1), "available_after_pods": round(after, 1)}

    def steady(self, seconds: float, interval: float) -> dict:
        """Nothing happens for so long: what that costs, and what the operator writes all the same."""
        # Numbers alone are written half a minute after the last write at the earliest: then the first ones are.
        time.sleep(40)
        at, writes, told = self.operator.passes(), self.audit.position(), fakes_told()
        mine, server, start = self.operator.usage.seconds(), self.server.seconds(), time.monotonic()
        resident = []
        while time.monotonic() - start < seconds:
            # As Prometheus would, with its usual interval.
            time.sleep(min(30, seconds))
            resident.append(self.operator.usage.resident())
            self.operator.text()
        span = time.monotonic() - start
        passes, written = self.operator.passes() - at, self.audit.writes(writes, self.operator.user)
        now = fakes_told()
        asked = sum(now["counts"][kind] - told["counts"][kind] for kind in ("state", "metrics"))
        longest = time.time() - min(now["heard_at"].values())
        for line in written[:MOST_PRINTED]:
            say(f"  written: {line}")
        return {
            "seconds": round(span), "resident_mb": round(max(resident), 1),
            "anonymous_mb": round(self.operator.usage.anonymous(), 1), "peak_mb": round(self.operator.usage.peak(), 1),
            "cpu_percent": round(100 * (self.operator.usage.seconds() - mine) / span, 1),
            "passes_per_second": round(passes.count / span, 1), "requests_per_second": round(asked / span, 1),
            "pass_ms": {f"p{percent}": passes.millis(percent / 100) for percent in (50, 90, 99)},
            "passes_due_percent": round(100 * passes.count * interval / (span * len(self.names)), 1),
            "longest_since_asked_seconds": round(longest, 1), "failed_passes": passes.failed, "writes": len(written),
            "api_server": {"resident_mb": round(self.server.resident()), "cpu_percent": round(100 * (self.server.seconds() - server) / span, 1)},
        }

    def restarted(self) -> dict:
        """A new operator: how long until it has asked every worker once, what it needs for that, and what it writes."""
        position = self.audit.position()
        self.operator.stop()
        start = time.time()
        self.operator.start()
        until("a new operator leads", lambda: (self.operator.leads(), "it does not"), 60, self.operator, every=0.1)

        def heard() -> tuple[bool, str]:
            count = sum(at > start for at in fakes_told()["heard_at"].values())
            return count >= self.pods, f"{count} of {self.pods}"

        until("workers are asked for the first time", heard, 300, self.operator)
        return {
            "all_asked_after_seconds": round(time.time() - start, 1), "peak_mb": round(self.operator.usage.peak(), 1),
            "writes": len(self.audit.writes(position, self.operator.user)),
        }

    def pin(self, targets: list[tuple[str, str]], workers: int, wanted: str) -> dict:
        """From the last pin that is written to the last worker that is asked to switch."""
        body = {"spec": {"switching": {"mode": "Pinned", "pinnedProfile": wanted}}}
        last = []

        def pin(target: tuple[str, str]) -> None:
            self.api.patch("modelprofiles", target[1], target[0], body)
            last.append(time.time())

        first = time.time()
        list(self.pool.map(pin, targets))

        def look() -> tuple[bool, str]:
            told = fakes_told()
            asked = [at for address, at in told["switched_at"].items() if at >= first and told["active"][address] == wanted]
            return len(asked) >= workers, f"{len(asked)} of {workers}"

        until(f"workers are asked for {wanted}", look, 600, self.operator, every=0.2)
        asked = max(fakes_told()["switched_at"].values())
        return {"workers": workers, "pins_written_in": round(max(last) - first, 2), "last_worker_asked_after": round(asked - max(last), 2)}


def measured(fleet: Fleet, count: int, steady_seconds: float, interval: float) -> dict:
    """All figures with so many ModelProfiles."""
    run: dict = {"count": count}
    start = time.monotonic()
    fleet.grow(count)
    say(f"{count} ModelProfiles were made in {time.monotonic() - start:.1f} s")
    run.update(fleet.reconciled())
    run["all_available_seconds"] = round(time.monotonic() - start, 1)
    say(f"all {count} are Available, {run['all_available_seconds']} s after the first was made")
    phases = {
        "steady": lambda: fleet.steady(steady_seconds, interval),
        "restart": fleet.restarted,
        "after_restart": lambda: fleet.steady(min(60, steady_seconds), interval),
        "pin_one": lambda: fleet.pin(fleet.names[:1], 4, "density"),
        "pin_all_others": lambda: fleet.pin(fleet.names[1:], fleet.pods - 4, "density"),
    }
    for name, phase in phases.items():
        run[name] = phase()
        say(f"{name}: {json.dumps(run[name])}")
    run["missed"] = missed(run, interval)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operator", type=Path, required=True, help="the program modelprofile")
    parser.add_argument("--build", default="unknown", help="how it was built, for the report")
    parser.add_argument("--count", default="1000,5000", help="ModelProfiles, rising; each has two workers")
    parser.add_argument("--steady-seconds", type=float, default=300)
    parser.add_argument("--interval", type=int, default=5, help="the operator's, in seconds")
    parser.add_argument("--quick", action="store_true", help="200 ModelProfiles for a minute")
    arguments = parser.parse_args()
    counts = [200] if arguments.quick else [int(count) for count in arguments.count.split(",")]
    steady_seconds = 60 if arguments.quick else arguments.steady_seconds
    # Of the fakes, and of this program's children: a connection for each worker.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    state = Path(os.environ["MODELPROFILE_CLUSTER"])
    runs = []
    fleet = Fleet(arguments.operator, state)
    with fakes("0.0.0.0"), fleet.kubelet:
        fleet.operator.install()
        fleet.operator.start(f"--interval={arguments.interval}")
        try:
            for count in counts:
                runs.append(measured(fleet, count, steady_seconds, arguments.interval))
                if count != counts[-1]:
                    fleet.pin(fleet.names, fleet.pods, "quality")
        finally:
            fleet.operator.stop()
    print(f"operator: {json.dumps({'build': arguments.build, 'cores': os.cpu_count(), 'interval': arguments.interval, 'runs': runs})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
