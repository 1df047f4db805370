"""How each engine is started: with the same cores, as many streams, and room for as many tokens in the KV cache."""

import dataclasses
import json
import os
import re
import secrets
import sys
import urllib.request
from pathlib import Path

from . import process
from .files import all_of, bytes_of
from .process import Failed

MODEL = "bench"
# What every engine's blocks divide.
BLOCK = 128
MIB = 1 << 20


@dataclasses.dataclass
class Launch:
    """A command and what to know about it. Ports are put in for {port} and {admin}."""

    command: list
    ready: str
    # Read before the start, so that all find their files in the page cache.
    files: list
    # What a step of one stream reads.
    weight_bytes: int
    kv_tokens: int
    extra: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Room:
    """Streams that are served at once, and the tokens that each may hold: prompt and answer."""

    streams: int
    tokens: int

    @classmethod
    def of(cls, levels, prefills, effort):
        longest = max([effort.prompt_tokens + effort.output_tokens, *(length + 1 for length in prefills)])
        # llama.cpp splits its cache over the streams, so that each part holds the longest prompt; so all have as much.
        return cls(max(levels, default=1), -(-longest // BLOCK) * BLOCK)

    @property
    def kv_tokens(self):
        return self.streams * self.tokens


def llama(contestant, files, room, threads, text):
    model = files.gguf(contestant.name.removeprefix("llama-").upper())
    return Launch(
        # Without --cache-ram 0 finished prompts pile up in memory.
        [files.tools.llama / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", "{port}", "-t", threads,
         "-np", room.streams, "-c", room.kv_tokens, "--cache-ram", "0", "--alias", MODEL],
        "http://127.0.0.1:{port}/health", [model], bytes_of(model), room.kv_tokens, extra={"cache_prompt": False})


def vllm(contestant, files, room, threads, text):
    folder = files.tools.vllm
    model = files.w8a8() if contestant.name == "vllm-w8a8" else files.checkpoint()
    environment = {
        # GiB, whole ones: the blocks below are what counts.
        "VLLM_CPU_KVCACHE_SPACE": str(-(-room.kv_tokens * files.kv_token_bytes() // (1 << 30)) + 1),
        # The machine has no core to spare for the front end; by default it keeps one.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }
    # Its documentation asks for both: an allocator and the OpenMP run time that the kernels were tuned with.
    wanted = {"libtcmalloc_minimal.so.4": Path("/usr/lib"), "libiomp5.so": folder}
    preload = {name: next(iter(sorted(where.rglob(name))), None) for name, where in wanted.items()}
    if missing := [name for name, path in preload.items() if not path]:
        print(f"note: vLLM runs without {', '.join(missing)}; apt-get install -y libtcmalloc-minimal4 gives it its best",
              file=sys.stderr)
    environment["LD_PRELOAD"] = ":".join(str(path) for path in preload.values() if path)
    return Launch(
        [folder / "bin" / "vllm", "serve", model, "--dtype", "bfloat16", "--max-model-len", room.tokens, "--max-num-seqs", room.streams,
         "--block-size", BLOCK, "--num-gpu-blocks-override", room.kv_tokens // BLOCK, "--no-enable-prefix-caching",
         "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "{port}"],
        "http://127.0.0.1:{port}/health", all_of(model), bytes_of(model), room.kv_tokens, environment=environment)


def openvino(contestant, files, room, threads, text):
    model = files.gguf("Q4_1")
    server = Path(__file__).with_name("openvino_server.py")
    return Launch(
        [files.tools.openvino, server, "--model", model, "--tokenizer", files.checkpoint() / "tokenizer.json", "--port", "{port}",
         "--streams", room.streams, "--kv-tokens", room.kv_tokens, "--threads", threads],
        "http://127.0.0.1:{port}/health", [model], bytes_of(model), room.kv_tokens)


OURS = {
    "ours-int4": {"format": "INT4", "groupSize": 32},
    "ours-int8": {"format": "INT8"},
    "ours-fp8": {"format": "FP8"},
    "ours-bf16": {"format": "BF16"},
}


def ours(contestant, files, room, threads, text):
    """One server for each profile: a ladder in one server would hold the weights of all of them."""
    weights, name = OURS[contestant.name], contestant.name
    kv_bytes = room.kv_tokens * files.kv_token_bytes()
    generous = bytes_of(files.checkpoint()) * 3 // 2 + kv_bytes + 1024 * MIB
    launch = serve(files, files.manifest(name, weights, generous, room.tokens, text), room, threads)
    # The first start makes the artifact, and says what beside the cache takes memory: then the budget is what leaves just
    # as many tokens as the peers have room for.
    memory = first_start(launch, files, name)
    budget = memory["weights"] + memory["workspace"] + kv_bytes
    launch = serve(files, files.manifest(name, weights, int(budget), room.tokens, text), room, threads)
    launch.weight_bytes, launch.files = int(memory["weights"]), [memory["file"]]
    return launch


def serve(files, manifest, room, threads):
    return Launch(
        [files.tools.worker, "serve", "--config", manifest, "--profile", "bench", "--port", "{port}", "--admin-port", "{admin}",
         "--cache", files.worker_cache(), "--threads", threads, "--device", "cpu"],
        "http://127.0.0.1:{admin}/readyz", [], 0, room.kv_tokens, environment={"MODELPROFILE_ADMIN_TOKEN": secrets.token_hex(16)})


def first_start(launch, files, name):
    print(f"==> preparing {name} of {files.model.title}", file=sys.stderr)
    log = files.folder / f"{name}.first.log"
    try:
        with process.running(launch, sorted(os.sched_getaffinity(0)), log) as (_, admin, _, _):
            key = state(admin, launch)["profiles"][0]["artifactKey"]
            packed = files.worker_cache() / "artifacts" / key / "packed-cpu.bin"
            return memory_of(metrics(admin)) | {"file": packed}
    except Exception as error:
        raise Failed(f"{error}; the whole log is {log}", process.end_of(log)) from error


def state(admin, launch):
    token = launch.environment["MODELPROFILE_ADMIN_TOKEN"]
    request = urllib.request.Request(f"{admin}/admin/v1/state", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def metrics(admin):
    with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
        return answer.read().decode()


def memory_of(text):
    """{"weights", "workspace", ...: bytes} out of the worker's metrics."""
    found = re.findall(r'^modelprofile_memory_bytes\{[^}]*kind="(\w+)"[^}]*\} (\S+)', text, re.MULTILINE)
    memory = {kind: float(size) for kind, size in found}
    if not {"weights", "workspace"} <= memory.keys():
        raise Failed("its metrics have no modelprofile_memory_bytes; build the worker of this working tree")
    return memory


def kv_tokens_of(text):
    """Tokens that the worker's KV cache holds, by its metrics."""
    found = re.search(r"^vllm:cache_config_info\{([^}]*)\} 1", text, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1))) if found else {}
    return int(labels["block_size"]) * int(labels["num_gpu_blocks"]) if labels else None


FAMILIES = {"llama": llama, "vllm": vllm, "openvino": openvino, "ours": ours}


def launch_of(contestant, files, room, threads, text):
    return FAMILIES[contestant.family](contestant, files, room, threads, text)
