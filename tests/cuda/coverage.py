"""Lines of the GPU backend and of its kernels that the tests execute.

    coverage.py FOLDER [FEWEST]

FOLDER is for what is built and counted. Rust is counted by the compiler's instrumentation of this workspace's crates alone,
kernels by gcov of their emulated build. A line counts once, however many instances of a template have it. Tests within the
sources are no part of what is counted. The table lists every file, the lines that no test executes follow; below FEWEST
percent of either (default 95) that is an error.
"""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from emulated import CUDA, KERNELS, ROOT, Device, cargo_test, die


def of_kernels(device, folder):
    """Builds a kernel library that counts; gives it and its objects."""
    objects = folder / "objects"
    objects.mkdir(parents=True)
    # Optimized as usual: -O0 frames do not fit the fibers' stacks. Blocks run on several threads.
    extra = ["-O1", "--coverage", "-fprofile-update=atomic", "-fno-inline-functions"]

    def build(name):
        made = device.compile(name, KERNELS, objects / f"{name}.o", extra)
        return made if isinstance(made, Path) else die(f"{name}.cu does not compile for coverage:\n{made}")

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        names = [name for name in device.objects if name != "library"]
        made = dict(zip(names, pool.map(build, names)))
    return device.link(made, folder / "libcudasim_coverage.so", ["--coverage"]), made


def lines_of_kernels(objects):
    """How often each line of each kernel file was executed."""
    counts = {}
    for made in objects.values():
        command = ["gcov", "--json-format", "--stdout", str(made)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=made.parent)
        for report in filter(None, done.stdout.splitlines()):
            for file in json.loads(report)["files"]:
                path = Path(file["file"]).resolve()
                if path.parent == KERNELS:
                    of_file = counts.setdefault(path, {})
                    for line in file["lines"]:
                        of_file[line["line_number"]] = of_file.get(line["line_number"], 0) + line["count"]
    return counts


def tools():
    """llvm-profdata and llvm-cov of the compiler's own release."""
    root = subprocess.run(["rustc", "--print", "sysroot"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    found = next(Path(root.strip()).glob("lib/rustlib/*/bin/llvm-cov"), None)
    return found.parent if found else die("llvm-cov is missing; install it with: rustup component add llvm-tools")


def lines_of_rust(programs, folder):
    """How often each line of each Rust file of the backend was executed."""
    binaries = tools()
    profile = folder / "all.profdata"
    raw = sorted(map(str, folder.glob("*.profraw")))
    (folder / "raw").write_text("\n".join(raw))
    subprocess.run([binaries / "llvm-profdata", "merge", "-sparse", "-f", folder / "raw", "-o", profile], check=True)
    objects = [argument for program in programs[1:] for argument in ("--object", program)]
    command = [binaries / "llvm-cov", "export", "--format=lcov", f"--instr-profile={profile}", programs[0], *objects]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    counts, of_file, tests_at = {}, {}, None
    for line in report.splitlines():
        key, _, value = line.partition(":")
        if key == "SF":
            path = (ROOT / value).resolve()
            is_ours = CUDA in path.parents and not path.stem.endswith("tests")
            of_file = counts.setdefault(path, {}) if is_ours else {}
            text = path.read_text().splitlines() if is_ours else []
            tests_at = next((at for at, line in enumerate(text, 1) if line.startswith("#[cfg(test)]")), len(text) + 1)
        elif key == "DA":
            number, count = map(int, value.split(",")[:2])
            if number < tests_at:
                of_file[number] = max(of_file.get(number, 0), count)
    return counts


def ranges(numbers):
    """1-3, 7: for people."""
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def report(title, counts, fewest):
    """Prints a table; whether it reaches the limit."""
    print(f"\n{title}\n{'lines':>7} {'tested':>7} {'%':>6}  file")
    total = tested = 0
    for path, lines in sorted(counts.items()):
        done = sum(1 for count in lines.values() if count)
        total, tested = total + len(lines), tested + done
        print(f"{len(lines):7} {done:7} {100 * done / max(len(lines), 1):6.1f}  {path.relative_to(CUDA)}")
    percent = 100 * tested / max(total, 1)
    print(f"{total:7} {tested:7} {percent:6.1f}  all")
    for path, lines in sorted(counts.items()):
        if missed := sorted(number for number, count in lines.items() if not count):
            print(f"  not executed: {path.relative_to(CUDA)}: {ranges(missed)}")
    worst = [path for path, lines in counts.items() if sum(map(bool, lines.values())) < fewest / 100 * len(lines)]
    return total > 0 and percent >= fewest, worst


def main():
    folder = Path(sys.argv[1]).resolve()
    fewest = float(sys.argv[2]) if len(sys.argv) > 2 else 95.0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    device = Device("plain")
    library, objects = of_kernels(device, folder)
    # A wrapper of the compiler for this workspace's crates: what they depend on stays as it was built.
    wrapper = folder / "instrumented"
    wrapper.write_text('#!/bin/sh\nexec "$@" -C instrument-coverage\n')
    wrapper.chmod(0o755)
    counted = {"RUSTC_WORKSPACE_WRAPPER": str(wrapper), "LLVM_PROFILE_FILE": str(folder / "%p-%m.profraw")}
    package = ["-p", "modelprofile-kernels", "--features", "cuda"]
    programs = [
        program
        for which in (["--test", "cuda"], ["--lib"])
        for program in cargo_test(*package, *which, env={**os.environ, **counted})
    ]
    for program, filters in zip(programs, ([], ["cuda::"])):
        environment = device.environment(library, **counted)
        done = subprocess.run([program, *filters], env=environment, cwd=ROOT / "worker/kernels")
        if done.returncode:
            die("a test failed; coverage is that of tests that pass")
    enough_rust, low_rust = report("the backend (worker/kernels/src/cuda)", lines_of_rust(programs, folder), fewest)
    kernels = lines_of_kernels(objects)
    enough_kernels, low_kernels = report("kernels (worker/kernels/src/cuda/kernels), emulated", kernels, fewest)
    if silent := {path.name for path in KERNELS.glob("*.cu")} - {path.name for path in kernels}:
        die(f"nothing is known of {' '.join(sorted(silent))}")
    # Of kernels each file has to reach it, of the backend all together.
    if not (enough_rust and enough_kernels) or low_kernels:
        names = " ".join(sorted(path.name for path in low_kernels))
        die(f"less than {fewest:g} % of the lines are tested{': ' + names if names else ''}")
    print(f"\nat least {fewest:g} % are tested")


if __name__ == "__main__":
    main()
