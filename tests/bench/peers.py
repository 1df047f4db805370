"""This worker beside its peers on one machine: same model, same cores, same load, in interleaved rounds.

Started by tests/scripts/bench-peers.sh, which installs the peers. A round starts each server in turn, measures it alone and
stops it; the figures are medians over rounds. How much of the machine others used meanwhile is in the figures: half a
core of other work can halve them, and it does not hit every server alike. Ends with one line `peers: {...}`.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import load_client

START_LIMIT_S = 600
# Other work up to here does not show in the figures.
QUIET_CORES = 0.1
MODEL = "bench"


@dataclasses.dataclass
class Server:
    """How to start one contestant. Ports are put in for {port} and {admin}."""

    name: str
    command: list
    ready: str
    # Bytes of weights that a step reads, and the peak that its products are held against.
    weight_bytes: int
    peak: str
    extra: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)


def llama(arguments):
    # One slot per stream, each with room for the longest prompt. Without --cache-ram 0 finished prompts pile up in memory.
    slots, context = max(arguments.levels), max(arguments.prefill, default=0) + 512
    return Server(
        "llama.cpp Q4_1",
        [arguments.llama, "-m", arguments.gguf, "--host", "127.0.0.1", "--port", "{port}", "-t", str(arguments.threads),
         "-np", str(slots), "-c", str(slots * context), "--cache-ram", "0", "--alias", MODEL],
        "http://127.0.0.1:{port}/health",
        arguments.gguf.stat().st_size,
        "int8_operations_s",
        extra={"cache_prompt": False},
    )


def vllm(arguments):
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        # The machine has no core to spare for the front end; by default it keeps one.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{arguments.vllm / 'bin'}:{os.environ['PATH']}",
    }
    # Its documentation asks for both: an allocator and the OpenMP run time that the kernels were tuned with.
    preload = [
        next((p for p in paths if p), None)
        for paths in ([find("/usr/lib", "libtcmalloc_minimal.so.4")], [find(arguments.vllm, "libiomp5.so")])
    ]
    if missing := [name for name, path in zip(("libtcmalloc_minimal.so.4", "libiomp5.so"), preload) if not path]:
        print(f"note: vLLM runs without {', '.join(missing)}; apt-get install -y libtcmalloc-minimal4 gives it its best",
              file=sys.stderr)
    environment["LD_PRELOAD"] = ":".join(str(path) for path in preload if path)
    return Server(
        "vLLM BF16",
        [arguments.vllm / "bin" / "vllm", "serve", arguments.bf16, "--dtype", "bfloat16", "--max-model-len", "4096",
         "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "{port}"],
        "http://127.0.0.1:{port}/health",
        sum(file.stat().st_size for file in arguments.bf16.glob("*.safetensors")),
        "bf16_operations_s",
        environment=environment,
    )


def ours(arguments):
    return Server(
        "ours Q4_1",
        [arguments.ours, "serve", "--config", arguments.config, "--profile", arguments.profile, "--port", "{port}",
         "--admin-port", "{admin}", "--cache", arguments.cache],
        "http://127.0.0.1:{admin}/readyz",
        arguments.gguf.stat().st_size,
        "int8_operations_s",
        environment={"MODELPROFILE_ADMIN_TOKEN": secrets.token_hex(16)},
    )


def limits(arguments):
    """What the machine can do now: bytes a second from memory, operations a second, by the worker's own probe."""
    command = [arguments.ours, "bench", "--model", arguments.gguf, "--format", "Q4_1", "--threads", arguments.threads,
               "--cache", arguments.cache, "--limits"]
    return json.loads(subprocess.run(map(str, command), check=True, capture_output=True, text=True).stdout)


def fractions(server, figures, machine, prompt_tokens=256, output_tokens=128):
    """Shares of the machine that each row reaches: of the read bandwidth by the weights (read once a step), of the peak of
    its kind of product by the linear layers (two operations a parameter and token, prompts included)."""
    bandwidth = server.weight_bytes / machine["read_bytes_s"]
    products = 2 * machine["linear_parameters"] / machine[server.peak]
    shares = {"streams": {}, "prefill": {}}
    for streams, level in figures["streams"].items():
        shares["streams"][streams] = {
            "bandwidth": round(1e3 / level["itl_ms"] * bandwidth, 3),
            "peak": round(level["output_tok_s"] * (1 + prompt_tokens / output_tokens) * products, 3),
        }
    for tokens, speed in figures["prefill"].items():
        shares["prefill"][tokens] = {"peak": round(speed * products, 3)}
    return shares


def find(folder, name):
    return next(iter(sorted(Path(folder).rglob(name))), None)


def free_ports():
    """Two different ports that nothing listens on: both are held until both are known."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def stat_fields(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def family(root):
    """The process and its descendants."""
    children = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat_fields(pid)[1]), []).append(int(pid))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def busy_seconds():
    """Core-seconds that the whole machine has worked. Fields 3 and 4 of the first line are idle time."""
    with open("/proc/stat") as file:
        fields = [int(value) for value in file.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def used_seconds(root):
    """Core-seconds of the process and its living descendants."""
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError):
            total += sum(int(value) for value in stat_fields(pid)[11:13])
    return total / os.sysconf("SC_CLK_TCK")


def resident_mib(root):
    total = 0
    for pid in family(root):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return round(total / 1024)


@contextlib.contextmanager
def running(server, cores, log):
    """The server, ready, on these cores: yields its URL, process id and seconds from start to ready."""
    port, admin = free_ports()
    fill = lambda text: str(text).format(port=port, admin=admin)
    begin = time.monotonic()
    process = subprocess.Popen(
        [fill(part) for part in server.command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, **server.environment}, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        while True:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(fill(server.ready), timeout=5) as answer:
                    if answer.status == 200:
                        break
            if process.poll() is not None:
                raise RuntimeError(f"{server.name} ended with status {process.returncode} before it was ready")
            if time.monotonic() - begin > START_LIMIT_S:
                raise RuntimeError(f"{server.name} was not ready within {START_LIMIT_S} s")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid, time.monotonic() - begin
    finally:
        # The whole session: vLLM leaves its engine behind when only the front end is told.
        for kill in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kill)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)


def measure(server, arguments, prompts, cores, machine):
    with tempfile.NamedTemporaryFile(mode="w+", prefix="bench-peers-") as log:
        try:
            with running(server, cores, log) as (url, pid, start_s):
                client = load_client.Client(url, MODEL, prompts, server.extra, arguments.quick)
                wall, busy, used = time.monotonic(), busy_seconds(), used_seconds(pid)
                own = time.process_time()
                figures = asyncio.run(client.measure(arguments.levels, arguments.prefill))
                wall = time.monotonic() - wall
                others = busy_seconds() - busy - (used_seconds(pid) - used) - (time.process_time() - own)
                shares = {"of_machine": fractions(server, figures, machine)} if machine else {}
                return {**figures, **shares, "start_s": round(start_s, 1), "memory_mib": resident_mib(pid),
                        "others_cores": round(max(0.0, others) / wall, 2)}
        except (RuntimeError, OSError, asyncio.IncompleteReadError) as error:
            log.seek(0)
            print("".join(log.readlines()[-30:]), file=sys.stderr)
            sys.exit(f"error: {server.name}: {error}")


def medians(rounds):
    """The same structure with the median of each number."""
    if isinstance(rounds[0], dict):
        return {key: medians([each[key] for each in rounds]) for key in rounds[0]}
    return round(statistics.median(rounds), 3)


def ratios(figures):
    """Ours over a peer's; above 1 is faster. Only of what was measured."""
    def ratio(peer, *path):
        a, b = figures.get("ours Q4_1"), figures.get(peer)
        for key in path:
            a, b = (value and value.get(key) for value in (a, b))
        return round(a / b, 2) if a and b else None

    llama_cpp, vllm_cpu = "llama.cpp Q4_1", "vLLM BF16"
    return {name: value for name, value in {
        "decode_int4": ratio(llama_cpp, "streams", 1, "decode_tok_s"),
        "batch16_int4_vs_llama": ratio(llama_cpp, "streams", 16, "output_tok_s"),
        "batch16_vs_vllm_bf16": ratio(vllm_cpu, "streams", 16, "output_tok_s"),
        "prefill512": ratio(llama_cpp, "prefill", 512),
        "prefill2048": ratio(llama_cpp, "prefill", 2048),
        "prefill512_vs_vllm_bf16": ratio(vllm_cpu, "prefill", 512),
        "prefill2048_vs_vllm_bf16": ratio(vllm_cpu, "prefill", 2048),
    }.items() if value is not None}


def table(figures):
    for name, f in figures.items():
        print(f"\n{name}: ready in {f['start_s']} s, {f['memory_mib']} MiB, others used {f['others_cores']} cores")
        def share(kind, n, *names):
            shares = f.get("of_machine", {}).get(kind, {}).get(n, {})
            return "  ".join(f"{shares[name]:.0%} of {name}" for name in names if name in shares)

        for n, level in f["streams"].items():
            print(f"  {n:>2} streams  {level['output_tok_s']:>7} tok/s  decode {level['decode_tok_s']:>6} tok/s a stream  "
                  f"ITL {level['itl_ms']:>7} ms (p99 {level['itl_p99_ms']})  TTFT {level['ttft_ms']} ms  "
                  f"{share('streams', n, 'bandwidth', 'peak')}")
        for n, speed in f["prefill"].items():
            print(f"  prefill of {n:>5}  {speed:>7} tok/s  {share('prefill', n, 'peak')}")


def default_text():
    root = Path(__file__).resolve().parents[2]
    return root.parent / "shared" / "text" / "wikitext-2-valid.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round with few requests: an impression, not a result")
    parser.add_argument("--rounds", type=int, default=None, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=2, help="cores that each server gets (default 2)")
    parser.add_argument("--text", type=Path, default=default_text(), help="UTF-8 text that prompts are cut from")
    parser.add_argument("--levels", type=load_client.numbers, default=[1, 4, 8, 16], help="streams (default 1,4,8,16)")
    parser.add_argument("--prefill", type=load_client.numbers, default=[512, 2048], help="prompt lengths (default 512,2048)")
    paths = parser.add_argument_group("given by tests/scripts/bench-peers.sh")
    for name in ("tokenizer", "llama", "gguf", "vllm", "bf16", "ours", "config", "cache"):
        paths.add_argument(f"--{name}", type=Path)
    paths.add_argument("--profile")
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        sys.exit(f"error: {arguments.text} is not there; name a text of at least 300 kB with --text FILE")
    available = sorted(os.sched_getaffinity(0))
    if len(available) < arguments.threads:
        sys.exit(f"error: {arguments.threads} cores asked for, {len(available)} there; use --threads")

    makers = {"llama": llama, "vllm": vllm, "ours": ours}
    servers = [make(arguments) for name, make in makers.items() if getattr(arguments, name)]
    rounds = {server.name: [] for server in servers}
    count = arguments.rounds or (1 if arguments.quick else 3)
    machines = []
    for number in range(count):
        if arguments.ours:
            machines.append(limits(arguments))
        for server in servers:
            print(f"==> round {number + 1} of {count}: {server.name}", file=sys.stderr)
            # From the same place for each server of a round: all get the same prompts.
            prompts = load_client.Prompts(arguments.tokenizer, arguments.text, start=number * 11)
            rounds[server.name].append(measure(server, arguments, prompts, available[: arguments.threads],
                                                machines[-1] if machines else None))
            print(f"    {json.dumps(rounds[server.name][-1])}", file=sys.stderr)
    figures = {name: medians(each) for name, each in rounds.items()}
    machine = medians(machines) if machines else None
    if machine:
        print(f"\nthe machine: {machine['read_bytes_s'] / 1e9:.1f} GB/s read, {machine['int8_operations_s'] / 1e12:.2f} TOP/s "
              f"INT8, {machine['bf16_operations_s'] / 1e12:.2f} TFLOP/s BF16")
    table(figures)
    worst = max(each["others_cores"] for server in rounds.values() for each in server)
    if worst > QUIET_CORES:
        print(f"\nnote: other programs used up to {worst} cores in a round. A server whose threads wait for each other by "
              f"spinning loses far more than that share: compare only when the machine is quiet (<= {QUIET_CORES})")
    print("peers: " + json.dumps({"ratios": ratios(figures), "rounds": count, "threads": arguments.threads,
                                  "machine": machine, "figures": figures}))


if __name__ == "__main__":
    main()
