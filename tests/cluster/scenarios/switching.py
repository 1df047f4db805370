"""What changes the profile: load, hours of the week, a person. And what does not."""

import http.client
import json
import threading
import time
from datetime import datetime, timedelta, timezone

from basics import Unmet, expect, run
from load import Load, cache_alone
from models import Model
from story import Story
from world import World

# A machine of two cores is overloaded by a few requests. The KV cache of the example has room for about 21,000 tokens.
SOON = {
    "toDensity": {"stabilizationWindowSeconds": 2}, "toQuality": {"stabilizationWindowSeconds": 3},
    "minDwellSeconds": 3, "maxSwitchesPerHour": 60,
}


def replay(world: World, model: Model, **day: float) -> dict:
    """A made-up day with a peak in its middle third, by the repository's own generator; its whole report."""
    report = world.scratch / "replay.json"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in day.items()]
    run("modelprofile", "replay", f"--url={model.url()}", f"--json={report}", *flags)
    return json.loads(report.read_text())


def switches(model: Model) -> list[str]:
    """The history of the status, oldest first."""
    return ["{from} -> {to} {reason} {outcome}".format(**switch) for switch in reversed(model.status().get("switchHistory", []))]


def plugin(*arguments: str) -> str:
    return run("kubectl", "modelprofile", *arguments)


def refused(*arguments: str) -> str:
    """What the plugin says when it does not do something."""
    try:
        said = plugin(*arguments)
    except Unmet as why:
        return str(why)
    raise Unmet(f"kubectl modelprofile {' '.join(arguments)} should fail, and says:\n{said}")


def says(text: str, *parts: str) -> None:
    for part in parts:
        expect(part in text, f"`{part}` is part of:\n{text}")


def load_switches_and_returns(world: World) -> str:
    """A peak brings density and its end quality: no request fails, no pod restarts, and status and Events tell why"""
    model = world.model(world.namespace("peak")).apply(switching={**SOON, "targets": cache_alone(2)})
    model.serves("quality")
    workers = model.processes()
    with Story(model) as story:
        report = replay(world, model, synthetic=12, base_rate=0.7, peak_rate=7, mean_prompt=60, mean_output=40)
        model.serves("quality", seconds=60)
        model.becomes("Progressing", "False", "Stable")
    day = report["summary"]
    expect(day["failed"] == 0, f"no request fails: {day['errors']}, {report['error_messages']}")
    expect(day["succeeded"] == day["requests"] > 15, f"every request is answered: {day}")
    expect(set(day["tokens_by_profile"]) == {"quality", "density"}, f"both profiles answered: {day['tokens_by_profile']}")
    expect(model.processes() == workers, f"the worker is the one that it was: {workers}, and now {model.processes()}")

    expect(story.profiles() == ["quality", "density", "quality"], f"the profile went up once and came back: {story.profiles()}")
    story.tells("Hold WithinTargets", "Hold Stabilizing", "Switch PressureHigh", "Switch PressureLow", "Hold WithinTargets")
    expect(
        switches(model) == ["quality -> density PressureHigh Completed", "density -> quality PressureLow Completed"],
        f"the history has both switches with what brought them about: {switches(model)}",
    )
    told = model.told("Switch")
    expect(
        [reason for reason, _ in told] == ["PressureHigh", "SwitchCompleted", "PressureLow", "SwitchCompleted"],
        f"Events tell each decision and each end: {told}",
    )
    says(told[0][1], "KV demand is", "(target 2 %) for 2 s; density is predicted to bring the pressure from")
    says(told[1][1], "quality -> density (PressureHigh): Completed after")
    says(told[2][1], "quality is predicted at", "below 70 % for 3 s")
    says(told[3][1], "density -> quality (PressureLow): Completed after")
    millis = [switch["durationMillis"] for switch in model.status()["switchHistory"]]
    share = day["tokens_by_profile"]["density"] / day["output_tokens"]
    return f"{day['requests']} requests, {share:.0%} of the tokens from density, switches in {millis[1]} and {millis[0]} ms"


def followed(model: Model, profile: str, moment: datetime) -> datetime:
    """Sends requests while a moment passes at which a window brings a profile; returns when it was seen to serve. No request fails."""
    before = model.status()["activeProfile"]
    time.sleep(max(0, (moment - datetime.now(timezone.utc)).total_seconds() - 15))
    with Load(model.url(), clients=1, tokens=16, pause=0.3) as load:
        load.wait_for_answers(1)
        model.serves(profile, seconds=30)
        seen = datetime.now(timezone.utc)
        load.wait_for_answers(3)
    expect(seen >= moment, f"{before} serves until {moment:%X}, and not only until {seen:%X}")
    outcome = load.outcome
    expect(not outcome.failed and not outcome.refused, f"no request fails: {outcome.failed} {outcome}")
    expect(set(outcome.profiles) == {before, profile}, f"both profiles answered: {outcome.profiles}")
    return seen


def window_opens_and_closes(world: World) -> str:
    """A window of the schedule brings its profile when it opens, gives it back when it closes, and is named"""
    model = world.model(world.namespace("hours")).apply(switching={**SOON, "targets": cache_alone(50)})
    model.serves("quality")
    workers = model.processes()
    # A window has whole minutes: the first one that leaves time to look before it begins, on a machine that others share.
    opens = (datetime.now(timezone.utc) + timedelta(seconds=80)).replace(second=0, microsecond=0)
    closes = opens + timedelta(minutes=1)
    window = {"name": "rush", "profile": "density", "start": f"{opens:%H:%M}", "end": f"{closes:%H:%M}"}
    with Story(model) as story:
        model.edit({"switching": {"schedule": {"timeZone": "UTC", "windows": [window]}}})
        opened = followed(model, "density", opens)
        closed = followed(model, "quality", closes)
    seconds = (closed - opened).total_seconds()
    expect(55 < seconds < 80, f"density served for the minute of the window: {seconds:.0f} s")
    expect(story.profiles() == ["quality", "density", "quality"], f"the profile follows the window: {story.profiles()}")
    story.tells("Hold WithinTargets", "Switch Scheduled", "Hold WithinTargets", "Switch PressureLow", "Hold WithinTargets")
    sentences = story.sentences("Scheduled")
    expect(set(sentences) == {"the window rush prefers density"}, f"the window is named: {sentences}")
    expect(
        switches(model) == ["quality -> density Scheduled Completed", "density -> quality PressureLow Completed"],
        f"the history names the schedule: {switches(model)}",
    )
    expect(("Scheduled", "the window rush prefers density") in model.told("Switch"), f"an Event names it: {model.told('Switch')}")
    expect(model.processes() == workers, "no pod was replaced")
    return f"density for {seconds:.0f} s, from {(opened - opens).total_seconds():.1f} s after the window opened"


def people_pin_and_unpin(world: World) -> str:
    """The kubectl plugin pins, moves a pin and takes it back, the model follows while requests run, and what it says is so"""
    namespace = world.namespace("pins")
    model = world.model(namespace).apply(switching={**SOON, "targets": cache_alone(50)})
    model.serves("quality")
    workers, here = model.processes(), ("-n", namespace)
    says(refused("pin", "smollm2", "fast", *here), "has no profile fast; its ladder is quality, density, best quality first")
    says(refused("switch", "smollm2", "density", *here), "has the mode Auto: load and schedule decide", "add --pin")
    says(refused("unpin", "other", *here), "other")
    with Story(model) as story, Load(model.url(), clients=2, tokens=24, pause=0.1) as load:
        load.wait_for_answers(3)
        says(
            plugin("pin", "smollm2", "density", *here),
            f"{namespace}/smollm2 is pinned to density; `kubectl modelprofile unpin smollm2 -n {namespace}` takes that back",
        )
        model.serves("density", seconds=20)
        load.wait_for_answers(3)
        says(
            plugin("explain", "smollm2", *here), f"{namespace}/smollm2: density serves", "Pinned to density, Auto before",
            "1 of 1 ready", f"`kubectl modelprofile unpin smollm2 -n {namespace}` gives the decision back",
        )
        says(
            plugin("status", "smollm2", *here), "active density, desired density", "Pinned to density, strategy InPlace",
            "conditions all 8 as they should be", "quality -> density  Completed", "Pinned", "spec.switching pins density",
        )
        says(plugin("pin", "smollm2", "density", *here), "is pinned to density already")
        # It waits for the profile: when it returns, there is nothing left to wait for.
        moved = plugin("switch", "smollm2", "quality", *here)
        status = model.status()
        expect(status["activeProfile"] == "quality", f"`switch` returns when the profile serves: {moved}\n{status}")
        load.wait_for_answers(3)
        plugin("switch", "smollm2", "density", *here)
        held = model.get()["metadata"]["annotations"].get("modelprofile.dev/unpinned-mode")
        expect(held == "Auto", f"the mode before the first pin is kept through all of them: {held}")
        # Longer than it would take to go back by itself.
        world.hold("the pin holds", lambda: model.status()["activeProfile"] == "density", 6)
        says(plugin("unpin", "smollm2", *here), "is not pinned any more: its mode is Auto")
        model.serves("quality", seconds=60)
        load.wait_for_answers(3)
        says(plugin("unpin", "smollm2", *here), "is not pinned: its mode is Auto")
        row = next(one for one in json.loads(plugin("top", *here, "--tokens", "-o", "json")) if one["name"] == "smollm2")
    spec, metadata = model.get()["spec"]["switching"], model.get()["metadata"]
    expect("pinnedProfile" not in spec, f"nothing is left of the pin: {spec}")
    expect("modelprofile.dev/unpinned-mode" not in metadata.get("annotations", {}), "nor of its annotation")
    managers = {entry["manager"] for entry in metadata["managedFields"]}
    expect("kubectl-modelprofile" in managers, f"what the plugin wrote is told apart: {managers}")
    expect((row["activeProfile"], row["readyReplicas"]) == ("quality", 1), f"`top` has its line: {row}")
    expect(row.get("tokensPerSecond", 0) > 0, f"`top` asks the worker what it generates: {row}")
    expect(story.profiles() == ["quality", "density", "quality", "density", "quality"], f"the profile follows: {story.profiles()}")
    expect(
        switches(model) == [
            "quality -> density Pinned Completed", "density -> quality Pinned Completed", "quality -> density Pinned Completed",
            "density -> quality PressureLow Completed",
        ],
        f"the history tells pins from decisions: {switches(model)}",
    )
    outcome = load.outcome
    expect(not outcome.failed and not outcome.refused, f"no request fails: {outcome.failed}")
    expect(set(outcome.profiles) == {"quality", "density"}, f"both profiles answered: {outcome.profiles}")
    expect(model.processes() == workers, "no pod was replaced")
    return f"{outcome.answered} requests during 4 switches"


def recommend_changes_nothing(world: World) -> str:
    """With the mode Recommend an overloaded model keeps its profile, and status and Events say what Auto would do"""
    namespace = world.namespace("advice")
    model = world.model(namespace)
    model.apply(switching={**SOON, "mode": "Recommend", "targets": cache_alone(1)})
    model.serves("quality")
    workers = model.processes()

    def advice() -> object:
        decision = model.status()["lastDecision"]
        return decision if decision["message"].startswith("recommended, not done: density. ") else None

    with Story(model) as story, Load(model.url(), clients=6, tokens=48) as load:
        decision = world.wait("a recommendation", advice, 40)
        explained = plugin("explain", "smollm2", "-n", namespace)
        load.wait_for_answers(8)
    expect((decision["action"], decision["reason"]) == ("Hold", "PressureHigh"), f"it is told, not done: {decision}")
    says(decision["message"], "KV demand is", "(target 1 %) for 2 s; density is predicted to bring the pressure from")
    says(
        explained, "quality serves", "Recommend: what load and schedule would do is told below and not carried out",
        "recommended, not done: density",
    )
    expect(story.profiles() == ["quality"], f"the profile stays: {story.profiles()}")
    expect(set(load.outcome.profiles) == {"quality"}, f"every answer is of quality: {load.outcome.profiles}")
    expect(not any(decision.startswith("Switch") for decision in story.decisions()), f"nothing is decided: {story.decisions()}")
    expect(not model.status().get("switchHistory"), f"nothing is switched: {switches(model)}")
    told = model.told("Recommend")
    expect(told and told[0][0] == "PressureHigh" and told[0][1].startswith("recommended, not done: density. "), f"an Event says it: {told}")
    wanted = {status.get("desiredProfile") for status in story.statuses}
    expect(wanted == {"quality"}, f"what is only recommended is not what should be: {wanted}")
    expect(not load.outcome.failed and not load.outcome.refused, f"no request fails: {load.outcome.failed}")
    expect(model.processes() == workers, "no pod was replaced")
    return f"pressure {decision['pressurePercent']} %, {load.outcome.answered} requests"


class Profiles:
    """The profile that each of some workers computes with, by their metrics, and when it changed."""

    def __init__(self, model: Model) -> None:
        self.addresses = [pod["status"]["podIP"] for pod in model.living()]

    def all_have(self, profile: str, seconds: float = 20) -> list[float]:
        """For each worker, when it was first seen with the profile."""
        seen: list[float] = []

        def follow(address: str) -> None:
            connection = http.client.HTTPConnection(address, 8001, timeout=5)
            limit = time.monotonic() + seconds
            while time.monotonic() < limit:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
                if f'modelprofile_active_profile{{profile="{profile}",model_name="smollm2"}} 1\n' in text:
                    seen.append(time.monotonic())
                    return
                time.sleep(0.05)

        threads = [threading.Thread(target=follow, args=(address,), daemon=True) for address in self.addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 10)
        return seen


def four_workers_switch_within_two_seconds(world: World) -> str:
    """A pin reaches the last of four workers within two seconds, idle and under load, and no request fails"""
    model = world.model(world.namespace("four"))
    model.apply(scaling={"minReplicas": 4, "maxReplicas": 4})
    model.serves("quality", replicas=4, seconds=120)
    workers, profiles = model.processes(), Profiles(model)
    expect(len(profiles.addresses) == 4, f"four workers: {profiles.addresses}")
    figures: list[float] = []

    def pin(profile: str) -> None:
        start = time.monotonic()
        model.edit({"switching": {"mode": "Pinned", "pinnedProfile": profile}})
        seen = profiles.all_have(profile)
        expect(len(seen) == 4, f"all four workers serve with {profile}, not only {len(seen)}")
        figures.append(max(seen) - start)
        model.serves(profile, replicas=4, seconds=10)

    for profile in ("density", "quality", "density"):
        pin(profile)
    with Load(model.url(), clients=2, tokens=24) as load:
        load.wait_for_answers(2)
        for profile in ("quality", "density"):
            pin(profile)
            load.wait_for_answers(4)
    expect(max(figures) < 2, f"the last of four workers switches within 2 s of the edit: {figures}")
    history = switches(model)
    expect(len(history) == 5 and all("Pinned Completed" in one for one in history), f"five switches, for a pin each: {history}")
    expect(not load.outcome.failed and not load.outcome.refused, f"no request fails: {load.outcome.failed}")
    expect(model.processes() == workers, "no pod was replaced")
    idle, busy = figures[:3], figures[3:]
    return f"from the edit to the last of four: idle {max(idle):.2f} s, under load {max(busy):.2f} s at most of {len(figures)}"


SCENARIOS = [
    load_switches_and_returns, window_opens_and_closes, people_pin_and_unpin, recommend_changes_nothing,
    four_workers_switch_within_two_seconds,
]
