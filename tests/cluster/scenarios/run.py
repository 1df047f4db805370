#!/usr/bin/env python3
"""The scenarios that must pass on a real cluster. Runs inside of one (cluster.py run, or enter):

  run.py --binaries DIR [--volume DIR] [--list] [SCENARIO...]

Without names all run, in an order in which later ones find what earlier ones made. Prints a line for each, and ends with how
many passed and how many could not run here. What is known at a failure is printed and left in the cluster's log folder."""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

import world as cluster
from world import STATE, SYSTEM, Unmet, World, run

# Each has SCENARIOS: functions that take the world; the first line of the docstring is the title. Those that need no node have
# the attribute `api_level`; those that come after all others, `last`.
MODULES = ["lifecycle", "serving", "switching", "scaling", "rollouts", "failures", "truth", "malformed", "access", "ports", "manifests", "steady"]


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
    failures, passed = [], 0
    for one in chosen:
        start = time.monotonic()
        world.made.clear()
        try:
            if not getattr(one, "installs", False):
                world.install()
            notes = one(world)
        except Exception as why:
            failures.append(one.__name__)
            print(f"{time.monotonic() - start:7.1f} s  FAILED {one.__name__}: {title(one)}", flush=True)
            if not isinstance(why, Unmet):
                traceback.print_exc()
            print(f"{why}", flush=True)
            print(f"more: {report(world, one.__name__)}", flush=True)
        else:
            passed += 1
            print(f"{time.monotonic() - start:7.1f} s  {title(one)}{'' if notes is None else f' ({notes})'}", flush=True)
        try:
            world.clear()
        except Exception as why:
            failures.append(f"{one.__name__}, clearing up")
            print(f"FAILED to clear up after {one.__name__}: {why}", flush=True)
    print(
        f"scenarios: {json.dumps({'passed': passed, 'failed': failures, 'skipped': len(skipped), 'seconds': round(time.monotonic() - begun)})}",
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
