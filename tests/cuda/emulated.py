"""The emulated device and its tests, for the programs that build kernels of their own: coverage.py and mutants.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA = ROOT / "worker/kernels/src/cuda"
KERNELS = CUDA / "kernels"
SIM = ROOT / "worker/kernels/gpu-sim"


def headers_of():
    """The headers that each kernel source is compiled behind, by the table of units in table.rs."""
    found = {}
    for unit in re.findall(r"^    \w+ = \[(.*?)\] \{", (CUDA / "table.rs").read_text(), re.M | re.S):
        files = re.findall(r'"([\w.]+)"', unit)
        for source in (file for file in files if file.endswith(".cu")):
            headers = [file for file in files if file.endswith(".cuh") and (KERNELS / file).exists()]
            found[source] = headers if source not in found else found[source]
    return found


class Device:
    """A build of the emulated device, plain or race, whose kernels can be replaced one by one."""

    def __init__(self, kind):
        script = str(SIM / "build.sh")
        self.kind = kind
        self.folder = Path(subprocess.run([script, kind], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        self.flags = subprocess.run([script, kind, "--flags"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        self.objects = {path.stem: path for path in (self.folder / "objects/kernels").glob("*.o")}

    def compile(self, name, kernels, to, extra=()):
        """Compiles the unit of one kernel source, whose files are looked for in `kernels` first; the object, or what the
        compiler says."""
        unit = self.folder / "units/kernels" / f"{name}.cpp"
        command = [*self.flags, *extra, f"-I{kernels}", f"-I{KERNELS}", "-c", str(unit), "-o", str(to)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=to.parent)
        return to if done.returncode == 0 else done.stderr

    def link(self, objects, to, extra=()):
        """A kernel library of these objects in the place of their namesakes of the build."""
        parts = [str(objects.get(name, path)) for name, path in sorted(self.objects.items())]
        beside = [f"-L{self.folder}", "-l:libcuda.so.1", f"-Wl,-rpath,{self.folder}"]
        subprocess.run([self.flags[0], "-shared", "-Wl,-z,defs", "-o", str(to), *parts, *beside, *extra], check=True)
        return to

    def environment(self, library=None, **more):
        """What a test program needs to run on this device, with these kernels."""
        path = os.environ.get("LD_LIBRARY_PATH", "")
        found = {"CUDASIM_DEVICES": "4", **os.environ, "LD_LIBRARY_PATH": f"{self.folder}:{path}", **more}
        if library:
            found["CUDASIM_KERNELS"] = str(library)
        return found


def cargo_test(*arguments, **options):
    """Builds tests; the programs' paths, in cargo's order."""
    command = ["cargo", "test", "--no-run", "--message-format=json", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)
    messages = map(json.loads, filter(None, done.stdout.splitlines()))
    programs = [message["executable"] for message in messages if message.get("profile", {}).get("test")]
    return [program for program in programs if program]


def die(text):
    sys.exit(f"error: {text}")
