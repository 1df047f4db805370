"""What the operator leaves alone: a fleet that nothing happens to.

The workers are fakes (see fleet_parts.py): pods on a node that is none, whose status is written here as a kubelet would write it,
all with the address of one process that answers as a worker does. The operator does not know; it asks each of them in each pass."""

import json
import sys
import time
from pathlib import Path

from basics import STATE, expect
from world import World

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fleet_operator import Audit, Operator  # noqa: E402
from fleet_parts import Kubelet, addresses, as_wanted, fakes, fakes_told, profile  # noqa: E402
from layout import NODE_ADDRESS  # noqa: E402

MODELS, WORKERS, SECONDS = 20, 2, 60
# Events are written after the status that they tell of: the minute begins when so many seconds went by without a write.
SETTLED = 5


def steady(world: World) -> str:
    """For a minute in which nothing happens to twenty models, the operator asks every worker and writes nothing but its Lease."""
    operator = None
    if world.node:
        world.install()
    else:
        operator = Operator(world.api, world.binaries / "modelprofile", STATE)
        operator.install()
        operator.start("--interval=1")
    # Pods of the operator reach the node's address and no other of this network; without a node each has one of its own.
    address = (lambda _: NODE_ADDRESS) if world.node else addresses(STATE)
    namespace = world.namespace("steady")
    models = [f"model-{number}" for number in range(MODELS)]
    try:
        with fakes("0.0.0.0"), Kubelet(world.api, address, scheduler=world.node):
            try:
                for name in models:
                    world.api.create("modelprofiles", namespace, profile(name, WORKERS, Kubelet.placement))
                return undisturbed(world, namespace)
            finally:
                # While there is someone to let the pods go.
                for name in models:
                    world.api.delete("modelprofiles", name, namespace)
                world.wait("the pods go", lambda: not world.api.list("pods", namespace), 60)
    finally:
        if operator:
            operator.stop()


def undisturbed(world: World, namespace: str) -> str:
    def look() -> dict[str, dict]:
        return {one["metadata"]["name"]: one for one in world.api.list("modelprofiles", namespace)}

    def well() -> bool:
        # Their load is the last thing that is told.
        return all(
            as_wanted(one) and one["status"]["lastDecision"].get("pressurePercent") is not None for one in look().values()
        )

    log = Audit(STATE / "audit.log")

    def writes(position: int) -> list[str]:
        # What scenarios beside this one ask for is written in their namespaces; anywhere else nothing may be.
        return log.writes(position, Operator.user, apart=set(world.everyones) - {namespace})

    def told_all() -> bool:
        position = log.position()
        time.sleep(SETTLED)
        return not writes(position)

    world.wait("all are Available", well, 180, every=1)
    world.wait("the last Events are told", told_all, 60)
    before = look()
    expect(len(before) == MODELS, f"there are {MODELS}: {list(before)}")
    position, asked = log.position(), fakes_told()["counts"]
    time.sleep(SECONDS)
    after, told = look(), fakes_told()["counts"]
    for name, then in before.items():
        changes = differences(then["status"], after[name]["status"])
        expect(not changes, f"nothing happened, and the status of {name} became another one: {changes}")
    written = writes(position)
    expect(not written, f"in {SECONDS} s of nothing the operator wrote: {written}")
    # Passes are a second apart, but the machine may be slow.
    least = MODELS * WORKERS * SECONDS // 3
    for kind in ("state", "metrics"):
        expect(told[kind] - asked[kind] >= least, f"workers were asked for {kind} {told[kind] - asked[kind]} times; at least {least}")
    expect(told["refused"] == 0 and told["switches"] == 0, f"every look had a token, and nobody was asked to switch: {told}")
    return f"{told['state'] - asked['state']} looks at {MODELS * WORKERS} workers"


def differences(before: object, after: object, path: str = "status") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [line for key in {**before, **after} for line in differences(before.get(key), after.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for place, pair in enumerate(zip(before, after)) for line in differences(*pair, f"{path}[{place}]")]
    return [] if before == after else [f"{path}: {json.dumps(before)} became {json.dumps(after)}"]


steady.api_level = True
# With a node the chart's operator is the one that is looked at; without one it runs as a process.
steady.installs = True

SCENARIOS = [steady]
