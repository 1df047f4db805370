"""What goes on when a part is lost: the operator, a worker, the node, the API server."""

import os
import re
import signal
import time
import urllib.request
from datetime import datetime, timezone

from basics import NODE, SYSTEM, Watch, expect
from llama import llama, load_image
from load import Load
from models import Model
from rollouts import endpoints, images, nothing_failed, ready, selected, switched_once
from world import World

PINNED = {"mode": "Pinned", "pinnedProfile": "quality"}


def leader(world: World) -> dict:
    """The pod of the operator that acts."""
    return next(pod for pod in world.operators() if pod["metadata"]["name"] == world.leader())


def led_since(world: World, moment: datetime) -> bool:
    """Whether an operator has renewed or taken the Lease since then."""
    lease = world.api.get("leases", "modelprofile-operator", SYSTEM)
    renewed = lease["spec"].get("renewTime")
    return bool(lease["spec"].get("holderIdentity")) and renewed is not None and datetime.fromisoformat(renewed.replace("Z", "+00:00")) > moment


def in_the_middle(model: Model, process: int, profile: str) -> None:
    """Pins another profile and kills a process as soon as the operator has said that it follows."""
    model.edit({"switching": {"pinnedProfile": profile}})
    model.world.wait(f"{profile} is wanted", lambda: model.status()["desiredProfile"] == profile, 20, every=0.01)
    os.kill(process, signal.SIGKILL)


def operator_killed(world: World) -> str:
    """An operator that is killed in the middle of a switch, a Surge and a rollout is replaced by one that finishes each once."""
    namespace = world.namespace("killed")
    native = world.model(namespace).apply(switching=PINNED)
    surging = llama(world, namespace, "surging", strategy="Surge")
    rolling = llama(world, namespace, "rolling", strategy="Surge", replicas=2)
    load_image(world, "next")
    for model, replicas in ((native, 1), (surging, 1), (rolling, 2)):
        model.serves("quality", replicas)
        model.answers()
    loads = [Load(model.url(), clients=1, tokens=8, pause=0.2) for model in (native, surging, rolling)]
    with loads[0], loads[1], loads[2]:
        for load in loads:
            load.wait_for_answers(2)
        process = world.process(leader(world), "modelprofile")
        surging.edit({"switching": {"pinnedProfile": "density"}})
        made = world.wait("the new Deployment", lambda: world.api.get("deployments", "surging-density", namespace), 20)
        rolling.edit({"engine": {"image": "localhost/modelprofile-llama-server:next"}})
        world.wait("the first new pod", lambda: images(rolling.living()) == ["next", "test"], 20, every=0.05)
        in_the_middle(native, process, "density")
        killed = datetime.now(timezone.utc)
        under_way = [native.status()["activeProfile"], selected(surging), images(rolling.living())]
        world.wait("an operator acts again", lambda: led_since(world, killed), 60)
        away = (datetime.now(timezone.utc) - killed).total_seconds()
        native.serves("density")
        world.wait("the surge is done", lambda: surging.status().get("activeProfile") == "density", 60)
        world.wait("the rollout is done", lambda: images(rolling.living()) == ["next", "next"] and all(map(ready, rolling.living())), 60)
        world.wait("the old Deployment is gone", lambda: world.api.get("deployments", "surging-quality", namespace) is None, 60)
        for load in loads:
            load.wait_for_answers(3)
    for load in loads:
        nothing_failed(load)
    expect(under_way[:2] == ["quality", "quality"], f"the operator ended before the ends of the switch and the Surge: {under_way}")
    for model in (native, surging):
        switched_once(model, "quality", "density")
        expect(len(model.events("SwitchCompleted")) == 1, f"and one Event tells of it: {model.events('SwitchCompleted')}")
    uid = world.api.get("deployments", "surging-density", namespace)["metadata"]["uid"]
    expect(uid == made["metadata"]["uid"], "the Deployment of the Surge is the one that the first operator made")
    sets = [one for one in world.api.list("replicasets", namespace) if one["metadata"]["name"].startswith("rolling-")]
    expect(len(sets) == 2, f"the rollout was one: {[one['metadata']['name'] for one in sets]}")
    restarts = sum(status["restartCount"] for pod in world.operators() for status in pod["status"]["containerStatuses"])
    return f"{sum(load.outcome.answered for load in loads)} answers; an operator acted again after {away:.1f} s ({restarts} restarts)"


def health(model: Model) -> tuple:
    """What a person would look at."""
    status = model.status()
    conditions = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    return conditions["Available"], conditions["Degraded"], status.get("activeProfile"), status["readyReplicas"]


HEALTHY = (("True", "WorkerReady"), ("False", "AsExpected"))


def worker_killed(world: World) -> str:
    """A worker that is killed while it switches comes back in the wanted profile, and the status says that it is away."""
    model = world.model(world.namespace("crash")).apply(switching=PINNED)
    model.serves("quality")
    model.answers()
    with Load(model.url(), tokens=8, pause=0.1) as load, Watch(lambda: health(model)) as watch:
        load.wait_for_answers(3)
        nothing_failed(load)
        in_the_middle(model, world.process(model.pods()[0], "modelprofile-worker"), "density")
        killed = time.monotonic()
        world.wait("the status says that none is there", lambda: health(model)[3] == 0, 20, every=0.05)
        noticed = time.monotonic() - killed
        model.serves("density")
        model.becomes("Degraded", "False", "AsExpected")
        away = time.monotonic() - killed
    # Until the endpoints have forgotten it: 503 by one that starts again.
    broken = [why for why in load.outcome.failed if not why.startswith("status 503")]
    expect(len(broken) <= load.clients, f"each client loses the one answer that it was getting: {load.outcome.failed}")
    with Load(model.url(), tokens=8, pause=0.1) as after:
        after.wait_for_answers(5)
    nothing_failed(after)
    expect(set(after.outcome.profiles) == {"density"}, f"answers come from the wanted profile: {after.outcome.profiles}")
    for available, degraded, active, count in watch.seen:
        told = (available, degraded) == HEALTHY if count else (available[0], degraded[0], active) == ("False", "True", None)
        expect(told, f"the status never says what is not so: {watch.seen}")
    expect(any(not count for _, _, _, count in watch.seen), f"and says that the worker is away: {watch.seen}")
    pods = model.pods()
    expect([pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [1], "the same pod, started again once")
    switched_once(model, "quality", "density")
    return f"told after {noticed:.1f} s, well after {away:.1f} s; failed meanwhile: {len(load.outcome.failed)}, refused {load.outcome.refused}"


def node_lost(world: World) -> str:
    """While the node is lost the status says that nobody is served, and a pin of that time is followed without a hand."""
    model = world.model(world.namespace("node")).apply(switching=PINNED)
    model.serves("quality")
    model.answers()
    pod = model.pods()[0]["metadata"]["uid"]

    def node_ready() -> str:
        conditions = world.api.get("nodes", NODE)["status"]["conditions"]
        return next(one["status"] for one in conditions if one["type"] == "Ready")

    stopped = time.monotonic()
    world.component("stop", "kubelet")
    try:
        world.wait("the node is given up", lambda: node_ready() == "Unknown", 60)
        world.wait("the pod counts no more", lambda: not any(one["ready"] for one in endpoints(model).values()), 30)
        model.becomes("Available", "False", "NodeLost", 20)
        expect(model.condition("Degraded")["status"] == "True", f"it is degraded: {model.condition('Degraded')}")
        told = model.condition("Available")["message"], model.condition("Degraded")["message"]
        model.edit({"switching": {"pinnedProfile": "density"}})
        world.wait("the pin is wanted", lambda: model.status()["desiredProfile"] == "density", 20)
        world.hold("nothing is claimed", lambda: health(model)[0][0] == "False" and health(model)[2:] == (None, 0), max(3, 60 - (time.monotonic() - stopped)))
    finally:
        world.component("start", "kubelet")
    back = time.monotonic()
    world.wait("the node is back", lambda: node_ready() == "True", 60)
    model.serves("density")
    model.becomes("Degraded", "False", "AsExpected")
    whole = time.monotonic() - back
    model.answers()
    with Load(model.url(), tokens=8) as load:
        load.wait_for_answers(5)
    nothing_failed(load)
    expect(set(load.outcome.profiles) == {"density"}, f"the pinned profile answers: {load.outcome.profiles}")
    expect([one["metadata"]["uid"] for one in model.pods()] == [pod], "by the same pod, which has served on")
    switched_once(model, "quality", "density", least=0)
    return f"well {whole:.1f} s after the kubelet was back; meanwhile: {told}"


def leading(address: str) -> int:
    """1 of an operator that takes itself for the leader."""
    try:
        with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=2) as answer:
            found = re.search(r"^modelprofile_operator_leader (\d)", answer.read().decode(), re.MULTILINE)
            return int(found[1]) if found else 0
    except OSError:
        # It ended, and starts again.
        return 0


# Longer than the operator's Lease (15 s): nobody knows any more who leads.
OUTAGE = 20


def api_server_restarted(world: World) -> str:
    """While the API server is away every request is answered, and afterwards one operator goes on by itself."""
    model = world.model(world.namespace("api")).apply(switching=PINNED)
    model.serves("quality")
    model.answers()
    addresses = [pod["status"]["podIP"] for pod in world.operators()]
    expect([leading(address) for address in sorted(addresses, key=leading)] == [0, 1], "one of two operators leads")
    with Load(model.url(), tokens=8, pause=0.1) as load, Watch(lambda: sum(map(leading, addresses))) as leaders:
        load.wait_for_answers(3)
        stopped = time.monotonic()
        world.component("stop", "kube-apiserver")
        try:
            load.wait_for_answers(3)
            time.sleep(max(0, OUTAGE - (time.monotonic() - stopped)))
        finally:
            world.component("start", "kube-apiserver")
        world.wait("the API server", lambda: world.api.call("GET", "/readyz"), 60)
        away = time.monotonic() - stopped
        model.edit({"switching": {"pinnedProfile": "density"}})
        pinned = time.monotonic()
        model.serves("density", seconds=120)
        followed = time.monotonic() - pinned
        # Long enough for one that leads no more and does not know to undo it.
        world.hold("it stays so", lambda: model.status().get("activeProfile") == "density", 10)
        load.wait_for_answers(5)
    nothing_failed(load)
    expect(set(leaders.seen) <= {0, 1}, f"two operators never lead at once: {leaders.seen}")
    switched_once(model, "quality", "density", least=0)
    expect(model.condition("Degraded")["status"] == "False", f"all is well: {model.condition('Degraded')}")
    world.wait("an operator leads", world.leads, 40)
    return f"{load.outcome.answered} answers; away for {away:.0f} s; a pin was followed {followed:.1f} s after it was back"


# Volumes are bound late for some seconds after the API server was away: what follows should have something else to do first.
SCENARIOS = [operator_killed, worker_killed, node_lost, api_server_restarted]
