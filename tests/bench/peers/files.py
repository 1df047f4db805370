"""One model in the format that each engine reads. Every file is made once, under another name until it is whole."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import machine_share, models
from .process import Failed, end_of

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Tools:
    """What tests/scripts/bench-peers.sh has installed; none for what was left out. `checkpoint` is SmolLM2's in BF16, `gguf` the
    file that it was made of."""

    cache: Path
    gguf: Path
    checkpoint: Path
    worker: Path = None
    llama: Path = None
    llama_source: Path = None
    converter: Path = None
    vllm: Path = None
    openvino: Path = None


class Files:
    """The files of one model."""

    def __init__(self, model, tools, threads):
        self.model, self.tools, self.threads = model, tools, threads
        self.folder = tools.cache / "bench-peers" / "models" / model.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "made.log"

    def make(self, target, what, command):
        """`target`, which `command(path)` writes."""
        if target.exists():
            return target
        print(f"==> making {what}", file=sys.stderr)
        part = target.with_name(f"{os.getpid()}.{target.name}")
        remove(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "w", encoding="utf-8") as log:
            code = subprocess.run([str(word) for word in command(part)], stdout=log, stderr=subprocess.STDOUT).returncode
        if code != 0 or not part.exists():
            remove(part)
            raise Failed(f"{what} could not be made; the whole log is {self.log}", end_of(self.log))
        part.rename(target)
        return target

    def checkpoint(self):
        """The BF16 checkpoint that all other files are made of."""
        if self.model is models.SMOLLM2:
            return self.tools.checkpoint
        self.room()
        return self.make(self.folder / "checkpoint", f"a checkpoint of {self.model.title}", lambda part: [
            sys.executable, HERE.parent / "make_random_llama.py", part, "--tokenizer", self.tools.checkpoint])

    def room(self):
        if (self.folder / "checkpoint").exists():
            return
        free = shutil.disk_usage(self.folder).free
        if free < self.model.disk_bytes:
            raise Failed(f"its files need {self.model.disk_bytes / 1e9:.0f} GB under {self.tools.cache}, which has {free / 1e9:.0f}; "
                         f"set XDG_CACHE_HOME or measure --models {models.SMOLLM2.name} alone")

    def config(self):
        return json.loads((self.checkpoint() / "config.json").read_text(encoding="utf-8"))

    def linear_parameters(self):
        return machine_share.linear_parameters(self.config())

    def kv_token_bytes(self):
        """Bytes of a token in a cache of 16-bit keys and values."""
        config = self.config()
        return config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * config["head_dim"] * 2

    def gguf(self, kind):
        """By llama.cpp's own programs; SmolLM2's Q4_1 is the file that everything is made of."""
        if self.model is models.SMOLLM2 and kind == "Q4_1":
            return self.tools.gguf
        if not self.tools.llama:
            raise Failed(f"llama.cpp makes the {kind} file and is left out; take it in, or leave out OpenVINO on this model")
        folder = self.folder / self.tools.llama.parents[1].name
        plain = self.make(folder / "BF16.gguf", f"a BF16 file for llama.cpp of {self.model.title}", lambda part: [
            self.tools.converter, HERE.parent / "quality" / "convert.py", self.tools.llama_source, self.checkpoint(), part, "bf16"])
        if kind == "BF16":
            return plain
        # In the file that OpenVINO reads the output layer has 8 bits, as in SmolLM2's: of llama-quantize's own choice, Q6_K, it
        # would make 16.
        extra = ["--token-embedding-type", "q8_0"] if kind == "Q4_1" else []
        return self.make(folder / f"{kind}.gguf", f"a {kind} file for llama.cpp of {self.model.title}", lambda part: [
            self.tools.llama / "llama-quantize", *extra, plain, part, kind, self.threads])

    def w8a8(self):
        """For vLLM, by this worker: INT8 rows with activations quantized as they come, in the layout compressed-tensors."""
        if not self.tools.worker:
            raise Failed("this worker makes the checkpoint and is left out; take it in, or leave out vllm-w8a8")
        return self.make(self.folder / "W8A8", f"a W8A8 checkpoint of {self.model.title}", lambda part: [
            self.tools.worker, "export", "hub", "--model", self.checkpoint(), "--format", "INT8", "--layout", "compressed-tensors",
            "--cache", self.worker_cache(), "--device", "cpu", "--output", part])

    def worker_cache(self):
        return self.tools.cache / "bench-peers" / "worker"

    def manifest(self, contestant, weights, budget, context, text):
        """A ModelProfile of one profile. JSON is YAML."""
        # A start measures the quality of what it has not measured yet: of two windows here, since nobody looks at it.
        sample = self.folder / "quality.txt"
        sample.write_text(text[:4000], encoding="utf-8")
        value = {
            "apiVersion": "modelprofile.dev/v1alpha1", "kind": "ModelProfile", "metadata": {"name": "bench"},
            "spec": {
                "model": {"uri": f"file://{self.checkpoint().resolve()}", "servedName": "bench", "maxContextTokens": context,
                          "license": {"accepted": "unknown"}},
                "profiles": [{"name": "bench", "weights": weights, "kvCache": {"format": "BF16"}}],
                "quality": {"onFailure": "Warn",
                            "dataset": {"uri": f"file://{sample.resolve()}", "contextTokens": 64, "maxTokens": 128}},
                "switching": {"mode": "Pinned", "pinnedProfile": "bench", "strategy": "InPlace"},
                "placement": {"memoryBudget": str(budget)},
            },
        }
        path = self.folder / f"{contestant}.yaml"
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        return path


def remove(path):
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def bytes_of(path):
    """Of a file, or of the weights in a checkpoint's directory."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


def all_of(path):
    """The files below a path, itself if it is one."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
