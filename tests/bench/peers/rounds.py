"""The tasks of a run, how long they will take, and the results that are kept so that a run which was broken off goes on."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

# Tokens a second that an engine gets through, prompts and answers together, and seconds until it answers: two cores of a
# recent processor with SmolLM2. Only for the first estimate; what was measured takes their place.
GUESSED_SPEED = {"llama": 300, "vllm": 700, "openvino": 900, "ours": 1000}
GUESSED_START_S = {"llama": 2, "vllm": 90, "openvino": 6, "ours": 2}
# Starting, stopping, and looking at the machine before and after.
AROUND_S = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """One contestant in one round: what is started, measured and stopped. Rounds count from 1."""

    model: str
    contestant: str
    round: int
    levels: tuple
    prefills: tuple

    def covers(self, kept):
        """Whether a kept result has every cell of this task."""
        return set(self.levels) <= set(kept["levels"]) and set(self.prefills) <= set(kept["prefills"])


def tasks(models, needs, rounds):
    """Model after model, round after round, and in each round every contestant: what changes on the machine in an hour
    meets all of them. `needs` maps contestants to (levels, prompt lengths)."""
    return [Task(model, name, number, *needs[name])
            for model in models for number in range(1, rounds + 1) for name in needs]


def tokens(task, effort):
    """Tokens that a task computes, prompts included."""
    levels = sum(effort.count(n) for n in task.levels) * (effort.prompt_tokens + effort.output_tokens)
    return levels + effort.prefills * sum(task.prefills)


def guess(task, family, effort, slower):
    """Seconds of a task of which nothing is known; `slower` is how many times the small model's work a token is."""
    return AROUND_S + GUESSED_START_S[family] + slower * tokens(task, effort) / GUESSED_SPEED[family]


def seconds_left(remaining, known, guessed):
    """Seconds of the tasks that remain: what the contestant took before, else what is guessed."""
    return sum(known.get((task.model, task.contestant), guessed(task)) for task in remaining)


def duration(seconds):
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def go(left, one, failed, fail, say):
    """Does the tasks in their order with `one`. When a task fails, `fail` is told, and what is left of its contestant is not
    done: `failed` maps (model, contestant) to the reason, and hours of the others do not end for the sake of one."""
    left = not_failed(left, failed)
    while left:
        task = left[0]
        say(task, left)
        try:
            one(task)
        except Exception as error:
            failed[task.model, task.contestant] = f"failed in round {task.round}: {reason(error)}"
            fail(task, error)
        left = not_failed(left[1:], failed)


def not_failed(tasks, failed):
    return [task for task in tasks if (task.model, task.contestant) not in failed]


def reason(error):
    return str(error) or type(error).__name__


class Store:
    """Results by task, in a folder of their own for each set of circumstances: those of other circumstances are not taken."""

    def __init__(self, root, circumstances):
        text = json.dumps(circumstances, sort_keys=True)
        self.folder = Path(root) / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.circumstances = circumstances

    def begin(self, tasks, resume):
        """Ready to keep results; without `resume` those of the tasks' contestants are put aside, in the folder `before`."""
        before = self.folder / "before"
        before.mkdir(parents=True, exist_ok=True)
        self._write(self.folder / "circumstances.json", self.circumstances)
        for model, contestant in {(task.model, task.contestant) for task in tasks if not resume}:
            for old in self.folder.glob(f"{model}.{contestant}.*.json"):
                old.replace(before / old.name)

    def path(self, task):
        return self.folder / f"{task.model}.{task.contestant}.{task.round}.json"

    def get(self, task, engine=None):
        """The kept result of this engine (its version, by the folder that it is installed in) that has every cell of the task,
        or none."""
        try:
            kept = json.loads(self.path(task).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return kept["result"] if task.covers(kept) and kept["engine"] == engine else None

    def put(self, task, result, engine=None):
        kept = {"engine": engine, "levels": task.levels, "prefills": task.prefills, "result": result}
        self._write(self.path(task), kept)

    @staticmethod
    def _write(path, value):
        # Under another name until it is whole: a run may be broken off here too.
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(value) + "\n", encoding="utf-8")
        part.replace(path)
