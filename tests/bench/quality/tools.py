"""The programs that the benchmark runs, and what it reads from what they print."""

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW = 512
# llama.cpp's kernels for AMX raise SIGILL on virtual machines that lose the tiles' configuration; these do without.
PLAIN = ["--no-repack"]


class Skip(Exception):
    """A part that cannot be measured here; the message says why."""


@dataclasses.dataclass
class Ran:
    output: str
    seconds: float
    peak_bytes: int  # Largest resident size of the process (VmHWM), mapped files included.


@dataclasses.dataclass
class Runner:
    """Runs programs one at a time; what they say on standard error is kept in a log."""

    log: Path
    environment: dict = dataclasses.field(default_factory=dict)

    def __call__(self, *command, merge=False):
        """`merge`: what it says on standard error belongs to its output."""
        command = [str(part) for part in command]
        start = time.monotonic()
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out if merge else log, env=os.environ | self.environment)
                peak = watch(process)
                out.seek(0)
                output = out.read()
            log.write(output)
        if process.returncode != 0:
            raise Skip(f"{Path(command[0]).name} failed with {process.returncode}: {last_line(self.log)}")
        return Ran(output, time.monotonic() - start, peak)


def watch(process):
    """Waits for a process; its VmHWM as long as it could be read. The peak that wait4 gives would be this process's own
    where that is larger: a child begins as a copy of its parent."""
    peak = 0
    while process.poll() is None:
        try:
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(found.group(1)) * 1024 if found else peak
        except OSError:
            pass
        time.sleep(0.02)
    return peak


def last_line(log):
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


@dataclasses.dataclass
class Quantized:
    directory: Path
    seconds: float
    peak_bytes: int
    parameters_s: float


@dataclasses.dataclass
class Worker:
    """`modelprofile-worker`, with a cache of its own so that every artifact is built here."""

    binary: Path
    cache: Path
    run: Runner
    threads: int

    def quantize(self, model, recipe, calibration, tokens):
        command = ["quantize", "--model", model, "--format", recipe, "--calibration", calibration,
                   "--calibration-tokens", tokens, "--no-measure", "--threads", self.threads, "--cache", self.cache]
        ran = self.run(self.binary, *command)
        line = next(line for line in ran.output.splitlines() if "parameters/s" in line)
        key, rate = re.search(r"MiB\s+(\S+)\s", line).group(1), re.search(r"([\d.]+) M parameters/s", line).group(1)
        return Quantized(self.cache / "artifacts" / key, ran.seconds, ran.peak_bytes, float(rate) * 1e6)

    def export_hub(self, artifact, output):
        self.run(self.binary, "export", "hub", "--model", artifact, "--layout", "compressed-tensors", "--output", output)

    def export_gguf(self, model, kind, output, imatrix=None):
        extra = ["--imatrix", imatrix] if imatrix else []
        self.run(self.binary, "export", "gguf", "--model", model, "--type", kind, "--threads", self.threads,
                 "--output", output, *extra)

    def evaluate(self, model, recipes, text, *options):
        """{recipe: figures over the windows' second halves}; the first recipe is the reference."""
        ran = self.run(self.binary, "evaluate", "--model", model, "--format", ",".join(recipes), "--text", text,
                       "--window", WINDOW, "--skip-generation", "--threads", self.threads, "--cache", self.cache, *options)
        row = r"^(\S+)\s+[\d.]+\s+([\d.]+) ±\s*[\d.]+\s+[+-][\d.]+%\s+([\d.]+) ±"
        # The rows have canonical names; their order is that of the recipes.
        rows = re.findall(row, ran.output, re.MULTILINE)
        if len(rows) != len(recipes):
            raise Skip(f"our evaluator printed {len(rows)} rows of {len(recipes)}")
        return {recipe: {"perplexity": float(perplexity), "kld": float(kld)} for recipe, (_, perplexity, kld) in zip(recipes, rows)}


@dataclasses.dataclass
class Llama:
    """llama.cpp's programs."""

    programs: Path
    source: Path
    work: Path
    run: Runner
    threads: int

    def convert(self, model, output, kind="bf16"):
        """A GGUF file of plain weights by llama.cpp's own converter."""
        here = Path(__file__).parent
        self.run(sys.executable, here / "convert.py", self.source, model, output, kind)

    def quantize(self, source, kind, output, imatrix=None):
        extra = ["--imatrix", imatrix] if imatrix else []
        self.run(self.programs / "llama-quantize", *extra, source, output, kind, self.threads)

    def imatrix(self, source, text, chunks, output):
        self.run(self.programs / "llama-imatrix", "-m", source, "-f", text, "-o", output, "--chunks", chunks,
                 "-c", WINDOW, "-t", self.threads, *PLAIN)

    def base(self, model, text, logits):
        """Perplexity of the reference; its logits go to a file."""
        pattern = r"Final estimate: PPL = ([\d.]+)"
        return {"perplexity": find(pattern, self.perplexity(model, text, pattern, "--kl-divergence-base", logits)), "kld": 0.0}

    def compare(self, model, text, logits):
        perplexity, divergence = r"Mean PPL\(Q\)\s*:\s*([\d.]+)", r"Mean\s+KLD:\s*([-\d.]+)"
        ran = self.perplexity(model, text, divergence, "--kl-divergence-base", logits, "--kl-divergence")
        return {"perplexity": find(perplexity, ran), "kld": find(divergence, ran)}

    def perplexity(self, model, text, pattern, *extra):
        """Output with `pattern` in it: the program logs from a thread and at times ends before its last lines are out."""
        for _ in range(4):
            ran = self.run(self.programs / "llama-perplexity", "-m", model, "-f", text, "-c", WINDOW, "-b", WINDOW,
                           "-t", self.threads, *PLAIN, *extra, merge=True)
            if re.search(pattern, ran.output):
                break
        return ran.output


def find(pattern, text):
    found = re.search(pattern, text)
    if not found:
        raise Skip(f"the output has no {pattern}")
    return float(found.group(1))
