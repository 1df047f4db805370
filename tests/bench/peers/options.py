"""The command line of `make bench-peers`, and the plan that it asks for."""

import argparse
import dataclasses
import sys
from pathlib import Path

from effort import EFFORTS

from . import contestants, models, rows
from .rounds import tasks

LEVELS, ROUNDS = (1, 4, 8, 16), 5
# `make bench`: ours beside this one, in the formats that it is compared in by bench-compare.
REFERENCE, REFERENCE_ROUNDS = "llama-q8_0", 3
ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be measured. `missing` maps contestants that are wanted and left out to the reason."""

    models: tuple
    keys: tuple
    needs: dict
    missing: dict
    rounds: int

    @property
    def tasks(self):
        return tasks([model.name for model in self.models], self.needs, self.rounds)

    @property
    def families(self):
        return tuple(family for family in contestants.FAMILIES if any(contestants.BY_NAME[n].family == family for n in self.needs))


def numbers(text):
    return tuple(int(part) for part in text.split(",") if part)


def parser():
    keys = "\n".join(f"  {key.name:<14} {key.row}; against: {key.against}" for key in rows.KEYS)
    result = argparse.ArgumentParser(
        prog="bench-peers", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"keys:\n{keys}")
    add = result.add_argument
    add("--rounds", type=int, help=f"default {ROUNDS}, with --quick 1, with --reference {REFERENCE_ROUNDS}")
    add("--models", default=None, help=f"with commas: {', '.join(models.BY_NAME)} (default both)")
    add("--without", action="append", default=[], metavar="NAME",
        help=f"leave out an engine ({', '.join(contestants.FAMILIES)}) or one contestant ({', '.join(contestants.BY_NAME)}); "
             "may be repeated")
    add("--only", nargs="+", metavar="KEY",
        help="only the contestants and cells that these keys need; KEY_1b is the large model's")
    add("--quick", action="store_true", help="one round, few tokens: shows that everything works, a result it is not")
    add("--effort", choices=EFFORTS, help="requests of a level (default full, for the 1B shape short)")
    add("--resume", action="store_true", help="go on after a run that was broken off: what it measured is not measured again")
    add("--reference", action="store_true", help=f"ours beside {REFERENCE} alone, SmolLM2 only: what make bench-compare reads")
    add("--threads", type=int, default=2, help="cores that each server gets (default 2)")
    add("--levels", type=numbers, default=LEVELS, help="streams (default 1,4,8,16)")
    add("--prefill", type=numbers, default=rows.PREFILLS, help="prompt lengths (default 512,2048)")
    add("--text", type=Path, default=ROOT.parent / "shared" / "text" / "wikitext-2-valid.txt",
        help="UTF-8 text that prompts are cut from")
    add("--out", type=Path, help="file for all figures (default target/bench-peers/peers.json)")
    add("--dry-run", action="store_true", help="print the tasks and how long they will take, and stop")
    given = result.add_argument_group("given by tests/scripts/bench-peers.sh")
    given.add_argument("--families", action="store_true", help="print the engines that the plan needs, and stop")
    given.add_argument("--missing", action="append", default=[], metavar="ENGINE=REASON")
    for name in ("gguf", "checkpoint", "worker", "llama", "llama-source", "converter", "vllm", "openvino", "cache"):
        given.add_argument(f"--{name}", type=Path)
    return result


def refuse(message):
    sys.exit(f"error: {message}")


def chosen_keys(only):
    """({model name or none for all: keys}) of --only."""
    found = {}
    for name in only:
        large = name.endswith(models.LLAMA_1B.suffix)
        key = rows.BY_NAME.get(name.removesuffix(models.LLAMA_1B.suffix) if large else name)
        if key is None:
            refuse(f"--only: there is no key {name}; there are {', '.join(rows.BY_NAME)}, and each with {models.LLAMA_1B.suffix}")
        found.setdefault(models.LLAMA_1B.name if large else models.SMOLLM2.name, []).append(key)
    return found


def left_out(arguments):
    """{contestant: reason} of those that --without and failed installations take away."""
    reasons = {}
    for given in arguments.missing:
        name, _, reason = given.partition("=")
        reasons.update(dict.fromkeys(contestants.named(name), reason))
    for name in arguments.without:
        found = contestants.named(name)
        if not found:
            refuse(f"--without: {name} is neither an engine ({', '.join(contestants.FAMILIES)}) nor a contestant "
                   f"({', '.join(contestants.BY_NAME)})")
        reasons.update(dict.fromkeys(found, f"left out by --without {name}"))
    return reasons


def chosen_models(arguments, only):
    names = arguments.models.split(",") if arguments.models else list(models.BY_NAME)
    for name in names:
        if name not in models.BY_NAME:
            refuse(f"--models: there is no model {name}; there are {', '.join(models.BY_NAME)}")
    if arguments.reference:
        names = [models.SMOLLM2.name]
    elif only:
        names = [name for name in names if name in only]
        if not names:
            refuse(f"--only names no key of --models {arguments.models}: the large model's end in {models.LLAMA_1B.suffix}")
    return tuple(models.BY_NAME[name] for name in names)


def plan(arguments):
    """What the command line asks for."""
    if arguments.threads < 1 or (arguments.rounds is not None and arguments.rounds < 1):
        refuse("--threads and --rounds must be at least 1")
    if arguments.reference and arguments.only:
        refuse("--reference measures its own cells: leave out --only")
    only = chosen_keys(arguments.only) if arguments.only else {}
    keys = tuple(key for key in rows.KEYS if key in sum(only.values(), [])) if only else rows.KEYS
    everything = {c.name: (arguments.levels, arguments.prefill) for c in contestants.ALL}
    wanted = rows.needs(keys) if only else everything
    if arguments.reference:
        keys = ()
        wanted = {name: cells for name, cells in everything.items() if name in contestants.ours() or name == REFERENCE}
    missing = {name: reason for name, reason in left_out(arguments).items() if name in wanted}
    # In the order of a round, whatever asked for them.
    needs = {name: wanted[name] for name in contestants.BY_NAME if name in wanted and name not in missing}
    if not needs:
        refuse("nothing is left to measure: take fewer contestants away with --without")
    rounds = arguments.rounds or (1 if arguments.quick else REFERENCE_ROUNDS if arguments.reference else ROUNDS)
    return Plan(chosen_models(arguments, only), keys, needs, missing, rounds)


def effort_of(arguments, model):
    name = arguments.effort or ("quick" if arguments.quick else "short" if arguments.reference else model.effort)
    return EFFORTS[name]
