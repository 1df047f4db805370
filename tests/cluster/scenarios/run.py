#!/usr/bin/env python3
"""The scenarios that must pass on a real cluster. Runs inside of one (cluster.py run, or enter):

  run.py --binaries DIR [--volume DIR] [--list] [SCENARIO...]

Without names all run, in an order in which later ones find what earlier ones made. Prints a line for each, and ends with how
many passed, which of them not at the first attempt, and how many could not run here. What is known at a failure is printed and
left in the cluster's log folder."""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from basics import STATE, SYSTEM, Unmet, run
from world import World

# Each has SCENARIOS: functions that take the world; the first line of the docstring is the title. Those that need no node have
# the attribute `api_level`; those that come after all others, `last`.
MODULES = [
    "lifecycle", "serving", "switching", "scaling", "rollouts", "failures", "access", "truth", "malformed", "ports", "manifests",
    "steady",
]
# Some of these run at once: they have namespaces of their own, change nothing that others see, and decide nothing by load. In this
# order, the long ones first, so that none is left alone at the end. The first one prepares the model, which the others of BESIDE
# then find; those of FIRST need none.
FIRST = ("first_answer", "steady", "llama_cpp", "verdicts", "shipped", "immutable", "people")
BESIDE = (
    "window_opens_and_closes", "rolling_update", "deletion", "preparation_under_way", "surge",
    "quality_beyond_its_limits", "people_pin_and_unpin", "neighbours_are_left_alone", "metrics_that_are_stale",
    "image_that_is_missing", "others_scale", "worker_that_crashes", "edited_limits_are_followed", "memory_that_is_short",
    "gpu_that_is_missing", "licence_that_differs", "names_that_are_taken", "worker_killed", "admin_port", "api_keys",
)
AT_ONCE = 4
MORE_ATTEMPTS = 2


def scenarios() -> list:
    every = [one for module in MODULES for one in importlib.import_module(module).SCENARIOS]
    return sorted(every, key=lambda one: getattr(one, "last", 0))


def title(scenario) -> str:
    return scenario.__doc__.strip().splitlines()[0].rstrip(".")


def report(world: World, name: str) -> Path:
    """Everything that a person would ask for next."""
    path = STATE / "log" / f"scenario-{name}.log"
    with open(path, "w") as log:
        def section(what: str, *command: str) -> None:
            log.write(f"\n===== {what}\n{run(*command, check=False)}\n")

        section("ModelProfiles", "kubectl", "get", "mp,pods,jobs,deployments,services", "-A", "-o", "wide")
        for namespace in world.made:
            section(f"ModelProfiles of {namespace}", "kubectl", "describe", "mp", "-n", namespace)
            section(f"pods of {namespace}", "kubectl", "describe", "pods", "-n", namespace)
            section(f"Events of {namespace}", "kubectl", "get", "events", "-n", namespace, "--sort-by=.metadata.creationTimestamp")
            for pod in world.api.list("pods", namespace):
                section(f"log of {pod['metadata']['name']}", "kubectl", "logs", "-n", namespace, pod["metadata"]["name"], "--tail=60")
        for pod in world.operators():
            section(f"log of {pod['metadata']['name']}", "kubectl", "logs", "-n", SYSTEM, pod["metadata"]["name"], "--tail=200")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path, required=True, help="the folder with modelprofile and modelprofile-worker")
    parser.add_argument("--volume", type=Path, help="keep the model and what is made of it there, between runs")
    parser.add_argument("--control-plane", action="store_true", help="there is no node: run what needs none, and count the rest")
    parser.add_argument("--once", action="store_true", help="do not try again what failed")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("names", nargs="*", metavar="SCENARIO")
    arguments = parser.parse_args()
    every = scenarios()
    if arguments.list:
        for one in every:
            print(f"{one.__name__:32} {title(one)}")
        return 0
    unknown = set(arguments.names) - {one.__name__ for one in every}
    if unknown:
        sys.exit(f"no scenario is called {' or '.join(sorted(unknown))}; --list has them")
    chosen = [one for one in every if not arguments.names or one.__name__ in arguments.names]
    skipped = [one for one in chosen if arguments.control_plane and not getattr(one, "api_level", False)]
    chosen = [one for one in chosen if one not in skipped]

    world = World(arguments.binaries, arguments.volume, node=not arguments.control_plane)
    begun = time.monotonic()
    world.prepare()
    print(f"{time.monotonic() - begun:7.1f} s  images, model and claims are laid ready", flush=True)
    outcomes: dict[str, bool] = {}

    def attempt(scenario, its: World) -> None:
        outcomes[scenario.__name__] = run_one(scenario, its)

    beside = at_once(chosen, world)
    if beside:
        world.install()
        run_at_once(beside, lambda one: attempt(one, world.beside()))
    for one in chosen:
        if one not in beside:
            attempt(one, world)
    # A machine that is held up by others for seconds can fail what has a limit of time; what fails every time does not hold.
    failed = [one for one in chosen if not outcomes[one.__name__]]
    for one in [one for _ in range(0 if arguments.once else MORE_ATTEMPTS) for one in failed]:
        if not outcomes[one.__name__]:
            print(f"once more: {one.__name__}", flush=True)
            attempt(one, world)
    summary = {
        "passed": sum(outcomes.values()), "failed": [name for name, passed in outcomes.items() if not passed],
        "not_at_once": [one.__name__ for one in failed if outcomes[one.__name__]], "skipped": len(skipped),
        "seconds": round(time.monotonic() - begun),
    }
    print(f"scenarios: {json.dumps(summary)}")
    return 1 if summary["failed"] else 0


def at_once(chosen: list, world: World) -> list:
    """Those of the chosen ones that run at once, in the order in which they begin."""
    by_name = {one.__name__: one for one in chosen}
    found = [by_name[name] for name in FIRST + BESIDE if name in by_name]
    # Without a node, one that installs has an operator of its own.
    return [one for one in found if world.node or not getattr(one, "installs", False)]


def run_at_once(scenarios: list, attempt: Callable) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {one.__name__: pool.submit(attempt, one) for one in scenarios if one.__name__ in FIRST}
        if FIRST[0] in running:
            wait([running[FIRST[0]]])
        running |= {one.__name__: pool.submit(attempt, one) for one in scenarios if one.__name__ not in FIRST}
    for ended in running.values():
        # Raises what is no outcome of a scenario.
        ended.result()


def run_one(scenario, world: World) -> bool:
    """Runs a scenario, says how it ended, and clears up after it; whether both went well."""
    name, start, passed = scenario.__name__, time.monotonic(), True
    try:
        if not getattr(scenario, "installs", False):
            world.install()
        notes = scenario(world)
    except Exception as why:
        passed = False
        trace = "" if isinstance(why, Unmet) else traceback.format_exc()
        text = f"{time.monotonic() - start:7.1f} s  FAILED {name}: {title(scenario)}\n{trace}{why}\nmore: {report(world, name)}"
    else:
        text = f"{time.monotonic() - start:7.1f} s  {title(scenario)}{'' if notes is None else f' ({notes})'}"
    try:
        world.clear()
    except Exception as why:
        passed = False
        text += f"\nFAILED to clear up after {name}: {why}"
    print(text, flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main())
