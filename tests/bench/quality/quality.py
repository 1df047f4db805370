"""Quality of what this worker quantizes beside the tools that people use now: one run, one text, one scorer for both sides.

Started by tests/scripts/bench-quality.sh, which installs the tools and trains the small model. Every part prints a table
and can be left out; what could not be measured is said with the reason. Ends with one line `quality: {...}`. All of it takes
hours: with --resume, parts that an earlier run of the same worker has finished are printed again instead of measured.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import time
import traceback
from pathlib import Path

from sections import SECTIONS, Setting, Subject
from tools import Llama, Runner, Skip, Worker

# Windows scored and tokens calibrated with: (whole, quick).
SIZES = {"trained": ((128, 32768), (16, 8192)), "smollm2": ((32, 16384), (8, 4096))}
GROUPS = {"trained": 128, "smollm2": 64}


class Both:
    """Writes to two streams."""

    def __init__(self, one, two):
        self.streams = (one, two)

    def write(self, text):
        for stream in self.streams:
            stream.write(text)

    def flush(self):
        self.streams[0].flush()


class Finished:
    """Parts that are measured: their figures, their seconds and what they printed, of one worker, one size of text and these
    programs as they are."""

    def __init__(self, folder, worker, quick, resume):
        digest = hashlib.sha256()
        for file in (worker, *sorted(Path(__file__).parent.glob("*.py"))):
            digest.update(file.read_bytes())
        self.folder, self.resume = folder / f"finished-{digest.hexdigest()[:16]}{'-quick' if quick else ''}", resume
        self.folder.mkdir(parents=True, exist_ok=True)

    def part(self, section, model, measure):
        """What `measure` returns, now or in the run that finished it."""
        file = self.folder / f"{model}-{section}.json"
        if self.resume and file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            print(kept["printed"], end="", flush=True)
            return kept["figures"], kept["seconds"]
        start, printed = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(Both(sys.stdout, printed)):
            figures = measure()
        seconds = round(time.monotonic() - start, 1)
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"figures": figures, "seconds": seconds, "printed": printed.getvalue()}), encoding="utf-8")
        new.rename(file)
        return figures, seconds


def names(text):
    return [name for name in text.split(",") if name]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts and logs")
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="environment of a reference tool")
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's programs")
    parser.add_argument("--llama-source", type=Path)
    parser.add_argument("--vllm", type=Path)
    parser.add_argument("--sections", type=names, default=list(SECTIONS), help=",".join(SECTIONS))
    parser.add_argument("--models", type=names, default=list(SIZES), help=",".join(SIZES))
    parser.add_argument("--references", type=names, default=["trained"], metavar="MODELS",
                        help="models that other tools quantize too: smollm2 takes them an hour and lies on a 4-bit grid already")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a quarter of the text: shows that it works, not the figures")
    parser.add_argument("--resume", action="store_true", help="do not measure again what an earlier run of this worker finished")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    run = Runner(arguments.work / "log", {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    llama = arguments.llama and Llama(arguments.llama, arguments.llama_source, arguments.work, run, arguments.threads)
    environments = {name: Path(path) for name, path in (pair.split("=", 1) for pair in arguments.python)}
    setting = Setting(Worker(arguments.worker, arguments.work / "cache", run, arguments.threads), llama, run, arguments.work,
                      environments, arguments.vllm, arguments.threads)
    finished = Finished(arguments.work, arguments.worker, arguments.quick, arguments.resume)
    figures, seconds, left_out = {}, {}, []
    for model in arguments.models:
        windows, calibration_tokens = SIZES[model][arguments.quick]
        subject = Subject(model, getattr(arguments, model), GROUPS[model], windows, calibration_tokens, model in arguments.references)
        subject.prepare(arguments.trained / "heldout.txt", arguments.trained / "calibration.txt", arguments.work)
        for section in arguments.sections:
            try:
                found, took = finished.part(section, model, lambda section=section, subject=subject: SECTIONS[section](setting, subject))
                figures.setdefault(section, {})[model] = found
                seconds[f"{section} {model}"] = took
            except Skip as reason:
                print(f"\n## {section}: {model}\n\nleft out: {reason}", flush=True)
                left_out.append(f"{section} {model}")
            except Exception:  # A part that breaks must not take the others' figures along.
                print(f"\n## {section}: {model}\n\nfailed:\n{traceback.format_exc()}", flush=True)
                left_out.append(f"{section} {model}")
    for what, value in (("missed", False), ("not measured", None)):
        of = [f"{section} {model} {target}" for section, models in figures.items() for model, found in models.items()
              for target in targets_with(value, found["targets"])]
        print(f"{what}: " + ("; ".join(of) or "nothing"))
    print("left out: " + ("; ".join(left_out) or "nothing"))
    print("quality: " + json.dumps({"quick": arguments.quick, "seconds": seconds, "figures": figures}))


def targets_with(wanted, targets, path=""):
    """Names of the targets that were reached (True), missed (False) or could not be measured (None)."""
    for name, value in targets.items():
        if isinstance(value, dict):
            yield from targets_with(wanted, value, f"{path}{name} ")
        elif value is wanted:
            yield path + name


if __name__ == "__main__":
    main()
