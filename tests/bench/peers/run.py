"""All tasks of a plan. A contestant that fails is named with the end of its log and left out from then on; the rest goes on."""

import dataclasses
import hashlib
import os
import sys
import time

import load_client

from . import contestants, launch, machine_share, measure, models, options, rounds, rows
from .files import Files, Tools

# Other work up to here does not show in the figures.
QUIET_CORES = 0.1


def tools_of(arguments):
    return Tools(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Tools)})


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else None


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    return fields.get("model name", "unknown"), set(fields.get("flags", "").split())


def instruction_set(flags):
    """The worker's name of the best instruction set that it has kernels for."""
    more = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16"}
    if not {"avx2", "fma", "f16c"} <= flags:
        return "scalar"
    return os.environ.get("MODELPROFILE_ISA") or ("avx512" if more <= flags else "avx2")


def circumstances(arguments):
    """What a kept result must agree in to be taken."""
    return {
        "processor": processor()[0], "threads": arguments.threads, "worker": digest(arguments.worker),
        "efforts": {model.name: dataclasses.asdict(options.effort_of(arguments, model)) for model in models.BY_NAME.values()},
        "room": {model.name: dataclasses.asdict(room_of(arguments, model)) for model in models.BY_NAME.values()},
    }


def room_of(arguments, model):
    return launch.Room.of(arguments.levels, arguments.prefill, options.effort_of(arguments, model))


class Run:
    def __init__(self, arguments, plan):
        self.arguments, self.plan = arguments, plan
        self.tools = tools_of(arguments)
        self.cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        self.machine = measure.Machine(self.tools, arguments.threads, self.cores)
        self.text = arguments.text.read_text(encoding="utf-8")
        self.store = rounds.Store(self.tools.cache / "bench-peers" / "results", circumstances(arguments))
        self.store.begin(plan.tasks, arguments.resume or arguments.dry_run)
        self.files, self.starts, self.prompts = {}, {}, {}
        # By model and contestant: results of the rounds, and why there are none.
        self.results, self.failed, self.known = {}, {}, {}
        self.taken, self.total = 0, 0

    def files_of(self, model):
        if model.name not in self.files:
            self.files[model.name] = Files(model, self.tools, self.arguments.threads)
        return self.files[model.name]

    def start_of(self, model, contestant):
        """How the contestant is started; its files are made when they are first asked for."""
        key = (model.name, contestant.name)
        if key not in self.starts:
            room = room_of(self.arguments, model)
            self.starts[key] = launch.launch_of(contestant, self.files_of(model), room, self.arguments.threads, self.text)
        return self.starts[key]

    def prompts_of(self, model, number):
        """From the same place for each server of a round: all get the same prompts."""
        if model.name not in self.prompts:
            tokenizer = self.files_of(model).checkpoint() / "tokenizer.json"
            self.prompts[model.name] = load_client.Prompts(tokenizer, self.arguments.text)
        prompts = self.prompts[model.name]
        prompts.at = 11 * number
        return prompts

    def engine(self, task):
        """Where a peer is installed, which names its version; ours is the worker, whose digest is among the circumstances."""
        path = getattr(self.arguments, contestants.BY_NAME[task.contestant].family, None)
        return str(path) if path else None

    def guessed(self, task):
        model = models.BY_NAME[task.model]
        family = contestants.BY_NAME[task.contestant].family
        return rounds.guess(task, family, options.effort_of(self.arguments, model), slower=1 if model.small else 8)

    def everything(self, dry=False):
        """Makes what is missing and measures what is not kept; `dry`: says only how long the measuring will take."""
        tasks = self.plan.tasks
        kept = {task: result for task in tasks if (result := self.store.get(task, self.engine(task)))}
        for task, result in kept.items():
            self.note(task, result)
        self.taken = len(kept)
        left = [task for task in tasks if task not in kept]
        if not dry:
            self.prepare(left)
            left = rounds.not_failed(left, self.failed)
        for model in self.plan.models:
            of_model = [task for task in left if task.model == model.name]
            print(f"==> {model.title}: {len(of_model)} measurements, about {self.left(of_model)}", file=sys.stderr)
        print(f"==> {len(self.plan.needs)} contestants, {self.plan.rounds} rounds: {len(left)} measurements, about {self.left(left)}; "
              f"{len(kept)} are kept from before", file=sys.stderr, flush=True)
        if not dry:
            self.total = len(tasks)
            rounds.go(left, self.one, self.failed, self.fail, self.say)

    def left(self, tasks):
        return rounds.duration(rounds.seconds_left(tasks, self.known, self.guessed))

    def prepare(self, tasks):
        """Everything that is made once, before the first round: nothing that it heats or evicts is part of a figure."""
        self.machine.limits()
        for task in tasks:
            key = (task.model, task.contestant)
            if key in self.starts or key in self.failed:
                continue
            try:
                self.start_of(models.BY_NAME[task.model], contestants.BY_NAME[task.contestant])
            except Exception as error:
                self.failed[key] = f"cannot be started: {rounds.reason(error)}"
                self.fail(task, error)

    def fail(self, task, error):
        title = contestants.BY_NAME[task.contestant].title
        print(getattr(error, "log", ""), file=sys.stderr)
        print(f"error: {title} on {task.model}: {rounds.reason(error)}; it is left out, and the rest goes on",
              file=sys.stderr, flush=True)

    def say(self, task, left):
        title = contestants.BY_NAME[task.contestant].title
        print(f"==> {self.total - len(left) + 1} of {self.total}, about {self.left(left)} left: {task.model}, "
              f"round {task.round} of {self.plan.rounds}, {title}", file=sys.stderr, flush=True)

    def one(self, task):
        model, contestant = models.BY_NAME[task.model], contestants.BY_NAME[task.contestant]
        logs = self.tools.cache / "bench-peers" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        result = measure.measure(
            contestant, self.start_of(model, contestant), task, options.effort_of(self.arguments, model),
            self.prompts_of(model, task.round), self.machine, self.files_of(model), logs / f"{task.model}.{task.contestant}.log")
        self.store.put(task, result, self.engine(task))
        self.note(task, result)
        print(f"    {measure.summary(result)}", file=sys.stderr, flush=True)

    def note(self, task, result):
        key = (task.model, task.contestant)
        self.results.setdefault(key, []).append(result)
        self.known[key] = result["wall_s"]

    def figures(self, model):
        """({contestant: medians}, {contestant: why it has none}) of a model."""
        missing = dict(self.plan.missing)
        missing |= {name: reason for (of, name), reason in self.failed.items() if of == model.name}
        figures = {name: rows.medians(self.results[model.name, name]) for name in self.plan.needs
                   if name not in missing and (model.name, name) in self.results}
        return figures, missing

    def outcome(self):
        """All that is known in the end: what the file holds."""
        name, flags = processor()
        parts = ("ratios", "cells", "reasons", "required", "fractions", "fractions_required", "fractions_reasons", "models")
        outcome = {part: {} for part in parts}
        for model in self.plan.models:
            figures, missing = self.figures(model)
            parts = rows.ratios(self.keys_of(model), model, figures, missing)
            if not self.arguments.reference:
                parts |= machine_share.required(model, figures, missing, self.plan.needs.keys() | missing.keys())
            for part, values in parts.items():
                outcome[part] |= values
            results = [result for (of, _), each in self.results.items() if of == model.name for result in each]
            limits = [result["machine"] for result in results if result["machine"]]
            outcome["models"][model.name] = {
                "title": model.title, "figures": figures, "missing": missing, "machine": rows.medians(limits) if limits else None,
                "rounds": {who: self.results.get((model.name, who), []) for who in self.plan.needs},
            }
        others = [result["others_cores"] for each in self.results.values() for result in each]
        return outcome | {
            "processor": name, "instruction_set": instruction_set(flags), "threads": self.arguments.threads, "rounds": self.plan.rounds,
            "quick": self.arguments.quick, "kept_from_before": self.taken, "others_cores_most": max(others, default=None),
            "quiet": max(others, default=0) <= QUIET_CORES, "circumstances": self.store.circumstances,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def keys_of(self, model):
        if not self.arguments.only:
            return self.plan.keys
        asked = options.chosen_keys(self.arguments.only)
        return tuple(asked.get(model.name, ()))
