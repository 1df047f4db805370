"""Breaks the GPU kernels in one place at a time and tells whether a test notices.

    mutants.py FOLDER [FILE | NUMBER ...]

Mutants are the removal of each barrier, found here, and the changes of mutants.txt. Each is made in a copy, the kernels that
it can reach are compiled for the emulated device, and the tests of its topic run with them until one fails: *killed*. One
that passes all is *survived*, and the exit code is 1. A mutant that does not compile, or whose text does not stand where it
should, is an error of the list.
"""

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from emulated import KERNELS, ROOT, Device, cargo_test, die, headers_of

LIST = Path(__file__).with_name("mutants.txt")

# The tests of what a file computes, the quickest that should notice first. Modules of worker/kernels/tests/cuda.
TESTS = {
    "prim.cuh": ["elementwise::"],
    "attention": ["attention::"],
    "linear": ["linear::every_kernel_is", "linear::"],
    "unpack": ["linear::group_wise_weights_are", "layout::"],
    "epilogue": ["linear::a_product_of_the_library", "linear::k_is_split"],
    "rotary": ["rotary::"],
    "penalize": ["sample::penalties"],
    "sample": ["sample::"],
    "tiles": ["calibrate::"],
    "gram": ["calibrate::gram", "calibrate::column"],
    "rounding": ["calibrate::rounding"],
    "quadratic": ["calibrate::quadratic"],
    "embed": ["elementwise::embeddings", "elementwise::"],
    "kv_move": ["elementwise::blocks_move"],
    "gather": ["elementwise::wanted"],
    "": ["elementwise::"],
}
# What many kernels share is changed in those of these tests alone.
SHARED = {"prim.cuh": ["norm", "embed", "quantize"], "rows.cuh": ["norm", "quantize", "activation"]}
BARRIER = re.compile(r"__sync(threads|warp)\(\);|__syncthreads_or\((\w+)\)")
# A missing barrier shows when threads run in another order, or to the race detector.
ORDERS = [("plain", {"CUDASIM_ORDER": "priority", "CUDASIM_SEED": str(seed)}) for seed in (1, 2)]
SECONDS = 400


class Mutant:
    def __init__(self, file, line, name, source, barrier):
        self.file, self.line, self.name, self.source, self.barrier = file, line, name, source, barrier

    @property
    def tests(self):
        return next(tests for start, tests in TESTS.items() if self.file.startswith(start))

    @property
    def runs(self):
        return [*ORDERS, ("race", {})] if self.barrier else [("plain", {}), ORDERS[0]]


def barriers():
    for path in sorted(KERNELS.glob("*.cu*")):
        text = path.read_text()
        for found in BARRIER.finditer(text):
            start = text.rfind("\n", 0, found.start()) + 1
            if "//" in text[start : found.start()] or path.name == "prim.cuh":
                continue
            # A barrier that also gives something is replaced by this thread's own.
            instead = f"({found[2]})" if found[2] else ";"
            source = text[: found.start()] + instead + text[found.end() :]
            line = text.count("\n", 0, found.start()) + 1
            yield Mutant(path.name, line, f"without {found[0].rstrip(';')}", source, True)


def changes():
    file, old, new = None, [], []

    def finish():
        if not old:
            return
        text = (KERNELS / file).read_text()
        pattern = r"\s*\n\s*".join(re.escape(line.strip()) for line in old)
        found = list(re.finditer(pattern, text))
        if len(found) != 1:
            die(f"{LIST.name}: {file} has {len(found)} places with: {old[0]}")
        source = text[: found[0].start()] + "\n".join(new) + text[found[0].end() :]
        yield Mutant(file, text.count("\n", 0, found[0].start()) + 1, new[0].strip(), source, False)

    part = None
    for line in LIST.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("- "):
            if part is not old or new:
                yield from finish()
                old, new = [], []
            part = old
            part.append(line[2:])
        elif line.startswith("+ "):
            part = new
            part.append(line[2:])
        elif line.startswith(" "):
            part.append(line)
        else:
            yield from finish()
            file, old, new, part = line.strip(), [], [], None
    yield from finish()


class Laboratory:
    def __init__(self, folder):
        self.folder = folder
        self.devices = {kind: Device(kind) for kind in ("plain", "race")}
        self.headers = headers_of()
        (self.program,) = cargo_test("-p", "modelprofile-kernels", "--features", "cuda", "--test", "cuda")

    def reached(self, file):
        """Kernel sources that a file is a part of: itself, or those that use a name of the header."""
        if file.endswith(".cu"):
            return [file[:-3]]
        declared = r"^(?:#define|struct|constexpr \w+|DEV (?:constexpr )?[\w:<>*& ]+?)[ &*](\w+)|^typedef .* (\w+);"
        names = {"".join(found) for found in re.findall(declared, (KERNELS / file).read_text(), re.M)}
        words = {source: set(re.findall(r"\w+", (KERNELS / source).read_text())) for source in self.headers}
        return [source[:-3] for source, headers in self.headers.items() if file in headers and words[source] & names]

    def library(self, mutant, kind, folder):
        kernels = folder / "kernels"
        kernels.mkdir(exist_ok=True)
        (kernels / mutant.file).write_text(mutant.source)
        device, made = self.devices[kind], {}
        names = SHARED.get(mutant.file) or self.reached(mutant.file)
        for name in names:
            made[name] = device.compile(name, kernels, folder / f"{name}-{kind}.o")
            if not isinstance(made[name], Path):
                die(f"{mutant.file}:{mutant.line} {mutant.name}: does not compile\n{made[name]}")
        return device.link(made, folder / f"libcudasim_mutant_{kind}.so")

    def passes(self, kind, library, tests, environment):
        """Whether tests pass with a kernel library; one that does not end has noticed something, too."""
        environment = self.devices[kind].environment(library, CUDASIM_TIMEOUT="20", CUDASIM_THREADS="1", **environment)
        command = [self.program, *tests, "--test-threads=1"]
        try:
            done = subprocess.run(command, env=environment, cwd=ROOT / "worker/kernels", timeout=SECONDS, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return False
        ran = re.search(r"running (\d+) test", done.stdout)
        if not ran or ran[1] == "0":
            die(f"no test is named {tests}:\n{done.stdout}{done.stderr}")
        return done.returncode == 0

    def sound(self, mutants):
        """The tests that are to fail must pass with the kernels as they are, in each way that they run."""
        ways = dict.fromkeys((test, kind, tuple(env.items())) for m in mutants for test in m.tests for kind, env in m.runs)
        for test, kind, env in ways:
            if not self.passes(kind, None, [test], dict(env)):
                die(f"{test} fails without any change ({kind} {dict(env)})")

    def kill(self, index, mutant):
        """How the mutant was noticed, or None."""
        folder = self.folder / str(index)
        folder.mkdir(parents=True)
        libraries = {}
        try:
            for kind, environment in mutant.runs:
                if kind not in libraries:
                    libraries[kind] = self.library(mutant, kind, folder)
                for test in mutant.tests:
                    if not self.passes(kind, libraries[kind], [test], environment):
                        return " ".join([test, *([kind] if kind != "plain" else []), *environment.values()])
            return None
        finally:
            shutil.rmtree(folder)


def main():
    folder, chosen = Path(sys.argv[1]).resolve(), sys.argv[2:]
    mutants = [*barriers(), *changes()]
    mutants = [(i, m) for i, m in enumerate(mutants, 1) if not chosen or m.file in chosen or str(i) in chosen]
    if not mutants:
        die("there is no such mutant")
    shutil.rmtree(folder, ignore_errors=True)
    laboratory = Laboratory(folder)
    laboratory.sound([mutant for _, mutant in mutants])
    survived = []

    def work(numbered):
        start = time.monotonic()
        return numbered, laboratory.kill(*numbered), time.monotonic() - start

    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MUTANT_JOBS", "2"))) as pool:
        for (index, mutant), killed, seconds in pool.map(work, mutants):
            print(
                f"{index:3} {'killed' if killed else 'SURVIVED':8} {seconds:4.0f} s  {mutant.file}:{mutant.line}  "
                f"{mutant.name}{'  -- ' + killed if killed else ''}",
                flush=True,
            )
            if not killed:
                survived.append(index)
    print(f"{len(mutants)} mutants, {len(mutants) - len(survived)} killed, {len(survived)} survived")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
