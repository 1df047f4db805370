#!/usr/bin/env python3
"""Runs Rust's test programs with a process for each test, some at a time.

    apart.py --log FILE [--jobs N] [--limit SECONDS] [--each SECONDS] [--skip TEXT]... [--only TEXT]... [--under "PROGRAM ..."] PROGRAM...

A kernel's error spoils the context of its whole process, so that one failure would fail every later test of a GPU with it.
Tests that no time is left for count as failed. The log has what failed printed, and ends as a test program's own does:
"test result: ok. 12 passed; 0 failed; ...". Exit status 1 when one failed.
"""

import argparse
import concurrent.futures
import os
import shlex
import subprocess
import sys
import time


def names(program, skipped):
    listed = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout
    tests = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
    listed = subprocess.run([program, "--list", "--ignored"], check=True, capture_output=True, text=True).stdout
    ignored = {line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")}
    return [name for name in tests if name not in ignored and not any(text in name for text in skipped)]


def run(test, options, end):
    program, name = test
    left = min(options.each, end - time.monotonic())
    if left <= 0:
        return test, "out of time", "there was no time left for it\n", 0.0
    command = [*shlex.split(options.under), program, "--exact", name, "--nocapture", "--test-threads=1"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=left)
        word, text = ("ok" if done.returncode == 0 else f"FAILED ({done.returncode})"), done.stdout
    except subprocess.TimeoutExpired as late:
        word, text = f"FAILED (killed after {left:.0f} s)", late.stdout or b""
    return test, word, text.decode(errors="replace"), time.monotonic() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="+")
    parser.add_argument("--log", required=True)
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--each", type=float, default=60)
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--under", default="")
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    tests = [(program, name) for program in options.programs for name in names(program, options.skip)]
    if options.only:
        tests = [test for test in tests if any(text in test[1] for text in options.only)]
    failed = 0
    with open(options.log, "w") as log, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for (program, name), word, text, seconds in pool.map(lambda test: run(test, options, end), tests):
            log.write(f"test {os.path.basename(program)} {name} ... {word} ({seconds:.1f} s)\n")
            if word != "ok":
                failed += 1
                log.write(text + "\n")
            log.flush()
        result = "FAILED" if failed else "ok"
        log.write(f"test result: {result}. {len(tests) - failed} passed; {failed} failed; 0 ignored\n")
    sys.exit(1 if failed or not tests else 0)


if __name__ == "__main__":
    main()
