"""What replaces pods: another image, and another profile with the strategies Surge and Recreate. And what does not: another rung."""

import re
import time
import urllib.request

from basics import Watch, expect
from llama import llama, write
from load import Load
from models import Model
from world import World

NEXT = "next"
# Not the one of the scenarios about missing GPUs, which run at the same time.
ACCELERATOR = "example.com/accelerator"


def nothing_failed(load: Load, refused: bool = False) -> None:
    """Every request was answered, or with `refused` found nobody there."""
    outcome = load.outcome
    expect(not outcome.failed, f"no request fails: {len(outcome.failed)} did, {outcome.answered} were answered; {outcome.failed[:3]}")
    expect(refused or not outcome.refused, f"no connection is refused: {outcome.refused} were, for {outcome.longest_refusal:.1f} s")


def endpoints(model: Model) -> dict[str, dict]:
    """Pods that the Service sends requests to -> their conditions."""
    slices = model.api.list("endpointslices", model.namespace, f"kubernetes.io/service-name={model.name}")
    found = [endpoint for one in slices for endpoint in one.get("endpoints") or []]
    return {one["targetRef"]["name"]: one["conditions"] for one in found}


def images(pods: list[dict]) -> list[str]:
    return sorted(pod["spec"]["containers"][0]["image"].rsplit(":", 1)[1] for pod in pods)


def ready(pod: dict) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", []))


def replaced(model: Model, tag: str, replicas: int) -> None:
    """Gives the workers another image, and waits until those with it serve and the others are gone."""
    before = {pod["metadata"]["name"] for pod in model.pods()}
    model.edit({"engine": {"image": f"localhost/modelprofile-worker:{tag}"}})

    def done() -> bool:
        pods = model.pods()
        names = {pod["metadata"]["name"] for pod in pods}
        return not before & names and images(pods) == [tag] * replicas and all(ready(pod) for pod in pods)
    model.world.wait(f"{replicas} workers with the image {tag}, and no others", done, 150)
    model.serves("quality", replicas)


def rolling_update(world: World) -> str:
    """Another worker image replaces two workers without a lost request and without a spare accelerator; one is away meanwhile."""
    world.image("worker", NEXT)
    world.offer(ACCELERATOR, 2)
    try:
        return without_a_spare(world, world.namespace("rolling"))
    finally:
        world.offer(ACCELERATOR, None)


def without_a_spare(world: World, namespace: str) -> str:
    model = world.model(namespace).apply(
        switching={"mode": "Pinned", "pinnedProfile": "quality"}, scaling={"minReplicas": 2, "maxReplicas": 2},
        # The accelerators are only counted: a worker that was given one would look for its driver.
        engine={
            "type": "Native", "image": "localhost/modelprofile-worker:test",
            "env": [{"name": "MODELPROFILE_DEVICE", "value": "cpu"}],
        },
        placement={"memoryBudget": "400Mi", "acceleratorResource": ACCELERATOR},
    )
    # Two that load at once, on as few cores as there are.
    model.serves("quality", 2, seconds=180)
    model.answers()

    def look() -> tuple[list[str], int]:
        living = model.living()
        return images(living), sum(ready(pod) for pod in living)

    with Load(model.url(), tokens=8, pause=0.2) as load, Watch(look) as watch:
        load.wait_for_answers(3)
        replaced(model, NEXT, 2)
        load.wait_for_answers(5)
    nothing_failed(load)
    expect(["next", "test"] in [tags for tags, _ in watch.seen], f"one after the other is replaced: {watch.seen}")
    expect(all(len(tags) <= 2 for tags, _ in watch.seen), f"there is never a third worker: {watch.seen}")
    expect(all(count >= 1 for _, count in watch.seen), f"one of them always serves: {watch.seen}")
    answered = load.outcome.answered

    model.edit({"scaling": {"minReplicas": 1, "maxReplicas": 1}})
    model.serves("quality")
    world.wait("the other worker is gone", lambda: len(model.pods()) == 1, 60)
    world.offer(ACCELERATOR, 1)
    with Load(model.url(), tokens=8, pause=0.2) as load, Watch(lambda: model.condition("Available").get("status")) as watch:
        load.wait_for_answers(3)
        replaced(model, "test", 1)
        load.wait_for_answers(5)
    nothing_failed(load, refused=True)
    expect(load.outcome.refused, "nobody is there while the only accelerator changes hands")
    expect(watch.seen == ["True", "False", "True"], f"Available says so: {watch.seen}")
    expect(set(load.outcome.profiles) == {"quality"}, f"answers come from the one profile: {set(load.outcome.profiles)}")
    return f"{answered} answers from two; the one was away for {load.outcome.longest_refusal:.1f} s"


def served(pod: dict) -> int:
    """Requests that a worker has answered, as its metrics say."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8001/metrics", timeout=2) as answer:
        counts = re.findall(r'^vllm:request_success_total\{[^}]*\} (\d+)', answer.read().decode(), re.MULTILINE)
    return sum(int(count) for count in counts)


def selected(model: Model) -> str | None:
    """Profile of the set that the Service points to."""
    return model.api.get("services", model.name, model.namespace)["spec"]["selector"].get("modelprofile.dev/profile")


def switched_once(model: Model, before: str, after: str, earlier: int = 0, least: int = 1) -> None:
    """The latest switch is in the history, once; it took `least` milliseconds: one in place may take less than one."""
    history = model.status().get("switchHistory", [])
    told = [(one["from"], one["to"], one["outcome"]) for one in history]
    expect(told[:1] == [(before, after, "Completed")] and len(told) == earlier + 1, f"the status has the switch once: {history}")
    expect(history[0]["reason"] == "Pinned" and history[0]["durationMillis"] >= least, f"with its reason and how long it took: {history}")


def surge(world: World) -> str:
    """Surge moves requests to new pods once those have answered one, and no request is lost."""
    namespace = world.namespace("surge")
    model = world.model(namespace).apply(switching={"mode": "Pinned", "pinnedProfile": "quality", "strategy": "Surge"})
    model.serves("quality")
    model.answers()
    old = model.pods()[0]["metadata"]["name"]
    before: list[int] = []
    stopping: list[dict] = []

    def look() -> tuple:
        # In this order: what was answered before the Service was seen to point elsewhere.
        pods = model.pods()
        fresh = [pod for pod in pods if pod["metadata"]["labels"].get("modelprofile.dev/profile") == "density"]
        count = served(fresh[0]) if fresh and ready(fresh[0]) else 0
        routed, behind = selected(model), endpoints(model)
        if routed == "quality" and fresh:
            before.append(count)
        going = [pod for pod in pods if pod["metadata"]["name"] == old and pod["metadata"].get("deletionTimestamp")]
        if going and old in behind:
            stopping.append(behind[old])
        return routed, old in behind, bool(going), old in [pod["metadata"]["name"] for pod in pods]

    with Load(model.url(), tokens=8, pause=0.2) as load, Watch(look) as watch:
        load.wait_for_answers(3)
        model.edit({"switching": {"pinnedProfile": "density"}})
        model.serves("density", seconds=120)
        world.wait("the old Deployment is gone", lambda: not [
            one for one in model.api.list("deployments", namespace) if one["metadata"]["name"] != "smollm2-density"
        ], 60)
        world.wait("the old pods are gone", lambda: len(model.pods()) == 1, 60)
        load.wait_for_answers(5)
    nothing_failed(load)
    expect(before and max(before) <= 1, f"clients do not reach the new pod before the Service points to it: {before}")
    proofs = served(model.pods()[0]) - load.outcome.profiles.count("density")
    expect(proofs >= 1, f"the operator has asked it something: {proofs} requests beside those of clients")
    steps = watch.seen
    routes = [one for index, one in enumerate(steps) if index == 0 or steps[index - 1][0] != one[0]]
    expect([one[0] for one in routes] == ["quality", "density"], f"the Service moves once: {steps}")
    expect(any(not one[1] and not one[2] and one[3] for one in steps), f"the old pod gets no request before it is told to stop: {steps}")
    expect(not stopping, f"and none afterwards: {stopping}")
    profiles = load.outcome.profiles
    expect(profiles[0] == "quality" and set(profiles[-5:]) == {"density"}, f"the new profile answers: {profiles}")
    switched_once(model, "quality", "density")
    record = model.status()["switchHistory"][0]
    return f"{load.outcome.answered} answers; the Service moved after {record['durationMillis'] / 1000:.1f} s"


def llama_cpp(world: World) -> str:
    """Pods of another engine are switched by Surge once they answer, without a lost request, and by Recreate with refusals meanwhile."""
    model = llama(world, world.namespace("llama"), strategy="Surge")
    model.serves("quality")
    model.answers()
    write(world, "density", "broken")
    with Load(model.url(), tokens=8, pause=0.1) as load:
        load.wait_for_answers(3)
        model.edit({"switching": {"pinnedProfile": "density"}})
        world.wait("the new pod is ready", lambda: [ready(pod) for pod in model.pods()] == [True, True], 40)
        world.hold("the Service stays while the new pod answers no request", lambda: selected(model) == "quality", 5)
        model.becomes("Progressing", "True", "RollingOut", 5)
        expect(model.status()["activeProfile"] == "quality", f"the first profile serves: {model.status()}")
        write(world, "density", "mended")
        model.serves("density")
        world.wait("the old Deployment is gone", lambda: len(model.api.list("deployments", model.namespace)) == 1, 60)
        load.wait_for_answers(10)
    nothing_failed(load)
    profiles = load.outcome.profiles
    expect((profiles[0], profiles[-1]) == ("llama-Q8_0.gguf", "llama-Q4_K_M.gguf"), f"the other file answers: {profiles}")
    switched_once(model, "quality", "density")
    surged = load.outcome.answered

    model.edit({"switching": {"strategy": "Recreate"}})
    world.wait("the strategy is followed", lambda: model.status()["observedGeneration"] == model.get()["metadata"]["generation"], 20)
    (leaving,) = model.living()
    for pod in model.pods():
        # One that lingers from the Surge is of the profile to come, and would be found by its Service.
        if pod["metadata"]["name"] != leaving["metadata"]["name"]:
            model.api.delete("pods", pod["metadata"]["name"], model.namespace, grace=0)
    with Load(model.url(), tokens=8) as load:
        load.wait_for_answers(10)
        model.edit({"switching": {"pinnedProfile": "quality"}})
        world.wait("it is told to go", lambda: not model.living(), 20, every=0.05)
        world.hold("no other pod comes while it lingers", lambda: not model.living(), 5)
        model.becomes("Available", "False")
        # It finishes what it had, for a minute, of which this waits for no more.
        model.api.delete("pods", leaving["metadata"]["name"], model.namespace, grace=0)
        model.serves("quality")
        load.wait_for_answers(10)
    nothing_failed(load, refused=True)
    expect(load.outcome.refused, "with Recreate nobody is there for a while")
    profiles = load.outcome.profiles
    expect((profiles[0], profiles[-1]) == ("llama-Q4_K_M.gguf", "llama-Q8_0.gguf"), f"the first file answers again: {profiles}")
    switched_once(model, "density", "quality", earlier=1)
    expect(model.condition("Degraded").get("status") == "False", f"all is well again: {model.condition('Degraded')}")
    return f"Surge: {surged} answers; Recreate: away for {load.outcome.longest_refusal:.1f} s"


def ladder(model: Model) -> set[str]:
    """Profiles that the worker can switch to, as its metrics say."""
    (pod,) = model.living()
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8001/metrics", timeout=2) as answer:
        return set(re.findall(r'^modelprofile_active_profile\{profile="([^"]*)"', answer.read().decode(), re.MULTILINE))


def rung_that_is_added(world: World) -> str:
    """A rung that is added under load is prepared, joins the worker that runs, serves when it is pinned, and leaves again; no pod is replaced"""
    namespace = world.namespace("rungs")
    fp8 = {"format": "FP8E4M3"}
    quality, density = (
        {"name": name, "weights": {"format": kind}, "kvCache": fp8} for name, kind in (("quality", "FP8"), ("density", "Q4_1"))
    )
    model = world.model(namespace).apply(profiles=[quality], switching={"mode": "Pinned", "pinnedProfile": "quality"})
    model.serves("quality")
    model.answers()

    def jobs() -> dict[str, int]:
        """Names of the prepare Jobs -> pods of each that have succeeded."""
        return {job["metadata"]["name"]: job["status"].get("succeeded", 0) for job in model.api.list("jobs", namespace)}

    def template() -> dict:
        """Of which any change would replace the pods."""
        return model.api.get("deployments", model.name, namespace)["spec"]["template"]

    expect(ladder(model) == {"quality"}, f"the worker has one rung: {ladder(model)}")
    workers, before, first = model.processes(), template(), jobs()
    with Load(model.url(), tokens=8, pause=0.2) as load:
        load.wait_for_answers(3)
        begun = time.monotonic()
        model.edit({"profiles": [quality, density]})
        world.wait("the worker has two rungs", lambda: ladder(model) == {"quality", "density"}, 120)
        joined = time.monotonic() - begun
        (job,) = jobs().items()
        expect(job[0] not in first and job[1] == 1, f"a Job of its own has prepared the rung before: {first}, and then {job}")
        expect(model.status()["activeProfile"] == "quality", f"nothing else has changed: {model.status()}")
        model.edit({"switching": {"pinnedProfile": "density"}})
        model.serves("density", seconds=20)
        load.wait_for_answers(3)
        model.edit({"switching": {"pinnedProfile": "quality"}})
        model.serves("quality", seconds=20)
        model.edit({"profiles": [quality]})
        world.wait("the worker has one rung again", lambda: ladder(model) == {"quality"}, 40)
        load.wait_for_answers(3)
    nothing_failed(load)
    expect(set(load.outcome.profiles) == {"quality", "density"}, f"both profiles answered: {load.outcome.profiles}")
    expect(model.processes() == workers, f"no pod was replaced or restarted: {workers}, and now {model.processes()}")
    expect(template() == before, f"nor was the Deployment's template touched: {before}, and now {template()}")
    expect(model.condition("Degraded").get("status") == "False", f"all is well: {model.condition('Degraded')}")
    return f"joined {joined:.1f} s after the edit, {load.outcome.answered} answers"


SCENARIOS = [rolling_update, surge, llama_cpp, rung_that_is_added]
