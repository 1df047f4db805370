"""What the real compiler makes of the GPU kernels: registers, spills, shared memory, occupancy, instructions.

    check.py FOLDER NVRTC PTXAS NVDISASM [--update]

FOLDER is what the example `cuda-kernels` wrote. Each unit goes through NVRTC to PTX and through ptxas to an image, is
disassembled, and is held against

    tests/cuda/kernels.txt           budgets and instructions of each kernel, written by hand
    worker/kernels/cuda-kernels.md   the table of all kernels, written by --update; a difference is shown and is an error

Results are kept beside the sources under a digest of all that made them.
"""

import concurrent.futures
import ctypes
import difflib
import fnmatch
import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = ROOT / "tests/cuda/kernels.txt"
TABLE = ROOT / "worker/kernels/cuda-kernels.md"
BEGIN, END = "<!-- table: make cuda-check -->\n", "<!-- end of the table -->\n"
WORKER_HEADER = 48

# A multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
SM_REGISTERS, SM_WARPS, SM_BLOCKS, SM_SHARED = 65536, 64, 32, 228 * 1024
# Registers are given to warps by 256, warps live on four parts of the multiprocessor; a block's shared memory is a multiple
# of 128 bytes, behind 1 KiB of the system's own.
REGISTER_UNIT, PARTS, SHARED_UNIT, SHARED_SYSTEM = 256, 4, 128, 1024


def up(value, unit):
    return -(-value // unit) * unit


def blocks_of(kernel):
    """Blocks of a kernel that a multiprocessor holds, and what the number is limited by."""
    warps = -(-kernel["threads"] // 32)
    of_warp = up(max(kernel["registers"], 1) * 32, REGISTER_UNIT)
    shared = up(kernel["static"] + kernel["dynamic"], SHARED_UNIT) + SHARED_SYSTEM
    limits = {
        "registers": SM_REGISTERS // PARTS // of_warp * PARTS // up(warps, PARTS),
        "shared memory": SM_SHARED // shared,
        "warps": SM_WARPS // warps,
        "blocks": SM_BLOCKS,
    }
    # Of equal limits the first.
    by = min(limits, key=limits.get)
    return limits[by], by


# ------------------------------------------------------------------------------------------------------------- compilers


def to_ptx(nvrtc, source, name, options):
    """PTX of a source, by NVRTC."""
    lib = ctypes.CDLL(nvrtc)

    def call(function, *arguments):
        code = getattr(lib, function)(*arguments)
        if code:
            size = ctypes.c_size_t()
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            lib.nvrtcGetProgramLog(program, log)
            sys.exit(f"error: {function} of {name}: {code}\n{log.value.decode(errors='replace')}")

    program = ctypes.c_void_p()
    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), f"{name}.cu".encode(), 0, None, None)
    flags = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    call("nvrtcCompileProgram", program, len(options), flags)
    size = ctypes.c_size_t()
    call("nvrtcGetPTXSize", program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    call("nvrtcGetPTX", program, ptx)
    return ptx.value


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def usage_of(log):
    """Registers, spills and static shared memory of each entry, from what `ptxas -v` says."""
    kernels, name = {}, None
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
            kernels[name] = {"static": 0}
        elif spill := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name].update(zip(("stack", "stores", "loads"), map(int, spill.groups())))
        elif used := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(used[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                kernels[name]["static"] = int(shared[1])
    return kernels


def instructions_of(text):
    """The different instructions of each entry, from nvdisasm's text."""
    kernels, name = {}, None
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+([^,\s]+)", line):
            found = re.match(r"\.text\.(\w+)", section[1])
            name = found[1] if found else None
            if name:
                kernels[name] = set()
        elif name and (opcode := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line)):
            kernels[name].add(opcode[1])
    return kernels


def registers_of(image):
    """Registers of each entry of a device image: the attribute 0x2f of its .nv.info, a symbol and a number."""
    offset, size, count, names_at = struct.unpack_from("<Q", image, 0x28)[0], *struct.unpack_from("<HHH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", image, offset + i * size) for i in range(count)]

    def text(strings, at):
        start = headers[strings][4] + at
        return image[start : image.index(b"\0", start)].decode()

    section = {text(names_at, header[0]): header for header in headers}
    symbols, info = section[".symtab"], section[".nv.info"]
    found = {}
    for at in range(info[4], info[4] + info[5] - 11, 4):
        if image[at : at + 4] == b"\x04\x2f\x08\x00":
            symbol, registers = struct.unpack_from("<II", image, at + 4)
            name = struct.unpack_from("<I", image, symbols[4] + 24 * symbol)[0]
            found[text(symbols[6], name)] = registers
    return found


def unit(folder, tools, name, options, image_of_worker):
    """What is known of a unit's kernels: by the two compilers, and of the image that a worker makes of it."""
    source = (folder / name).with_suffix(".cu").read_text()
    parts = [source, *options, *tools.values(), image_of_worker, Path(__file__).read_text()]
    made_of = hashlib.sha256("\0".join(parts).encode())
    kept = folder / f"{name}-{made_of.hexdigest()[:32]}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    print(f"==> {name}", file=sys.stderr, flush=True)
    virtual = [option.replace("=sm_", "=compute_") for option in options]
    ptx, image = folder / f"{name}.ptx", folder / f"{name}.sm_90a"
    ptx.write_bytes(to_ptx(tools["nvrtc"], source, name, virtual))
    kernels = usage_of(run(tools["ptxas"], "-arch=sm_90a", "-v", "-o", image, ptx))
    of_text = instructions_of(run(tools["nvdisasm"], "-c", image))
    of_worker = registers_of((folder / image_of_worker).read_bytes()[WORKER_HEADER:])
    for entry, kernel in kernels.items():
        kernel["instructions"] = sorted(of_text[entry])
        kernel["registers of the worker's image"] = of_worker[entry]
    kept.write_text(json.dumps(kernels))
    return kernels


# --------------------------------------------------------------------------------------------------------------- checks


def limits_of():
    """The lines of kernels.txt: pattern, most registers, fewest blocks, instructions."""
    lines = (line.split("#")[0].split() for line in LIMITS.read_text().splitlines())
    return [(pattern, int(registers), int(blocks), wanted) for pattern, registers, blocks, *wanted in filter(None, lines)]


def check(kernels, limits):
    """What is wrong, a sentence each."""
    wrong, used = [], set()
    for kernel in kernels:
        name = kernel["name"]
        if kernel["stack"] or kernel["stores"] or kernel["loads"]:
            wrong.append(
                f"{name}: {kernel['stores']} bytes of spill stores, {kernel['loads']} of loads, a stack of "
                f"{kernel['stack']}; kernels keep all in registers"
            )
        if kernel["registers"] != kernel["registers of the worker's image"]:
            wrong.append(f"{name}: {kernel['registers']} registers by ptxas, another number in the worker's own image")
        local = [code for code in kernel["instructions"] if code.split(".")[0] in ("LDL", "STL")]
        if local:
            wrong.append(f"{name}: uses local memory ({' '.join(local)})")
        line = next((line for line in limits if fnmatch.fnmatchcase(name, line[0])), None)
        if line is None:
            wrong.append(f"{name}: no line of {LIMITS.name} is for it; add its budget and instructions")
            continue
        used.add(line[0])
        _, registers, blocks, wanted = line
        if kernel["registers"] > registers:
            wrong.append(f"{name}: {kernel['registers']} registers, the budget is {registers}")
        if kernel["blocks"] < blocks:
            wrong.append(f"{name}: {kernel['blocks']} blocks on a multiprocessor, {blocks} are needed")
        for code in wanted:
            forbidden, code = code.startswith("!"), code.lstrip("!")
            if any(found == code or found.startswith(code + ".") for found in kernel["instructions"]) == forbidden:
                wrong.append(f"{name}: {'has' if forbidden else 'has no'} {code}")
    wrong += [f"{line[0]}: a line of {LIMITS.name} that is for no kernel" for line in limits if line[0] not in used]
    return wrong


def table_of(kernels):
    head = "| unit | kernel | threads | registers | spills | static shared | dynamic shared | blocks per SM | warps of 64 | limited by |\n"
    rows = [head, "|---|---|---:|---:|---:|---:|---:|---:|---:|---|\n"]
    for k in kernels:
        warps = k["blocks"] * -(-k["threads"] // 32)
        cells = [k["unit"], f"`{k['name']}`", k["threads"], k["registers"], k["stores"] + k["loads"], k["static"], k["dynamic"]]
        rows.append("| " + " | ".join(map(str, [*cells, k["blocks"], warps, k["by"]])) + " |\n")
    return "".join(rows)


def main():
    folder, *tools = map(Path, [argument for argument in sys.argv[1:] if not argument.startswith("--")])
    tools = dict(zip(("nvrtc", "ptxas", "nvdisasm"), map(str, tools)))
    options = (folder / "options").read_text().splitlines()
    entries = [line.split("\t") for line in (folder / "entries.tsv").read_text().splitlines()]
    names = list(dict.fromkeys(entry[0] for entry in entries))
    images = (folder / "images").read_text().splitlines()
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        jobs = [pool.submit(unit, folder, tools, name, options, image) for name, image in zip(names, images)]
        units = {name: job.result() for name, job in zip(names, jobs)}
    kernels = []
    for of, name, threads, shared in entries:
        if name not in units[of]:
            sys.exit(f"error: the unit {of} has no entry {name}")
        kernel = {"unit": of, "name": name, "threads": int(threads), "dynamic": int(shared), **units[of][name]}
        kernel["blocks"], kernel["by"] = blocks_of(kernel)
        kernels.append(kernel)
    wrong = check(kernels, limits_of())
    for of, found in units.items():
        for name in found.keys() - {kernel["name"] for kernel in kernels if kernel["unit"] == of}:
            wrong.append(f"{name}: compiled in {of}, but table.rs does not have it")

    text = TABLE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    now = before + BEGIN + table_of(kernels) + END + after
    if "--update" in sys.argv and now != text:
        TABLE.write_text(now)
        print(f"==> {TABLE.relative_to(ROOT)} is written", file=sys.stderr)
    elif now != text:
        sys.stdout.writelines(difflib.unified_diff(text.splitlines(True), now.splitlines(True), "committed", "compiled", n=0))
        wrong.append(f"{TABLE.relative_to(ROOT)} is of another time; write it with: make cuda-check UPDATE=1")
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    print(f"==> {len(kernels)} kernels, {len(wrong)} errors", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
