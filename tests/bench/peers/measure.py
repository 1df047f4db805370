"""One server, measured alone: started, asked, stopped; the machine's limits before and after."""

import asyncio
import json
import os
import subprocess
import time

import load_client

from . import launch, machine_share, process, rows
from .process import Failed

LIMITS = ("read_bytes_s", "int8_operations_s", "bf16_operations_s")


class Machine:
    """What the machine can do now, by the worker's own probe; nothing without the worker."""

    def __init__(self, tools, threads, cores):
        self.tools, self.threads, self.cores = tools, threads, cores

    def limits(self):
        if not self.tools.worker:
            return None
        command = [self.tools.worker, "bench", "--limits", "--model", self.tools.gguf, "--format", "Q4_1", "--threads", self.threads,
                   "--cache", self.tools.cache / "bench-peers" / "worker", "--device", "cpu"]
        ran = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                             preexec_fn=lambda: os.sched_setaffinity(0, self.cores))
        if ran.returncode != 0:
            raise Failed("the machine's limits cannot be measured: `bench --limits` failed", ran.stderr)
        found = json.loads(ran.stdout)
        return {name: found[name] for name in LIMITS}


def beside(before, after):
    """The limits in the time between two probes."""
    return before and after and {name: (before[name] + after[name]) / 2 for name in LIMITS}


def first_answer(client):
    """One token, so that whatever an engine puts off until it is asked counts as start."""
    asyncio.run(client.one(client.prompts.next(16), 1))
    return time.monotonic()


def measure(contestant, start, task, effort, prompts, machine, files, log):
    """The figures of one contestant in one round, as JSON holds them."""
    wall = time.monotonic()
    before = machine.limits()
    process.read_into_cache(start.files)
    try:
        with process.running(start, machine.cores, log) as (url, admin, pid, begin):
            client = load_client.Client(url, launch.MODEL, prompts, start.extra, effort)
            start_s = first_answer(client) - begin
            idle_mib = process.resident_mib(pid)
            load = process.Load(pid)
            figures = asyncio.run(client.measure(task.levels, task.prefills))
            others, memory_mib = load.others_cores(), process.resident_mib(pid)
            kv_tokens = launch.kv_tokens_of(launch.metrics(admin)) if contestant.family == "ours" else start.kv_tokens
    except Exception as error:
        raise Failed(str(error) or type(error).__name__, process.end_of(log)) from error
    limits = beside(before, machine.limits())
    # As JSON has them: what is kept and what was just measured look alike.
    figures = json.loads(json.dumps(figures))
    shares = machine_share.of_machine(figures, limits, start.weight_bytes, files.linear_parameters(), contestant.product)
    return {
        **figures, "start_s": round(start_s, 3), "memory_mib": memory_mib, "memory_idle_mib": idle_mib, "kv_tokens": kv_tokens,
        "weight_bytes": start.weight_bytes, "others_cores": others, "machine": limits, "of_machine": shares,
        "wall_s": round(time.monotonic() - wall, 1),
    }


def summary(figures):
    """A line for the one who watches."""
    decode = rows.value(figures, rows.DECODE)
    parts = [f"start {figures['start_s']:.2f} s", f"{figures['memory_mib']} MiB"]
    parts += [f"decode {decode} tok/s"] if decode else []
    parts += [f"x{n} {level['output_tok_s']}" for n, level in figures["streams"].items()]
    parts += [f"prefill {n} {speed}" for n, speed in figures["prefill"].items()]
    return ", ".join(parts + [f"others {figures['others_cores']} cores"])
