#!/usr/bin/env python3
"""The worker on a GPU from a checkpoint to switches under load: serve.py WORKER --json FILE [--kernels DIR] [--shape 8b|1b].

Writes a checkpoint of Llama's shape with random weights (speed does not depend on values), lets `modelprofile-worker serve`
quantize it to FP8 and INT4, and asks for streams of tokens while it changes profile to and fro. Prints and writes what the
client saw: tokens/s in each profile, the longest gap of a stream, how long switches took, and how many requests failed, which
must be none. torch makes the checkpoint, on the GPU where there is one, or NumPy; the standard library does for tiny shapes.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

# (layers, hidden, intermediate, heads, KV heads, head, vocabulary); Llama-3.1-8B's and Llama-3.2-1B's own.
SHAPES = {
    "8b": (32, 4096, 14336, 32, 8, 128, 128256),
    "1b": (16, 2048, 8192, 32, 8, 64, 128256),
    "tiny": (2, 128, 256, 4, 2, 64, 128),
}


def tensors(shape):
    layers, hidden, intermediate, heads, kv_heads, head, vocabulary = shape
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        for name, size in [
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (heads * head, hidden)),
            ("self_attn.k_proj", (kv_heads * head, hidden)),
            ("self_attn.v_proj", (kv_heads * head, hidden)),
            ("self_attn.o_proj", (hidden, heads * head)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (intermediate, hidden)),
            ("mlp.up_proj", (intermediate, hidden)),
            ("mlp.down_proj", (hidden, intermediate)),
        ]:
            yield f"model.layers.{layer}.{name}.weight", size
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def values():
    """A function from a tensor's shape to its bytes as BF16."""
    try:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"

        def with_torch(size):
            made = torch.ones(size) if len(size) == 1 else torch.randn(size, device=device) / size[1] ** 0.5
            return made.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()

        return with_torch
    except ImportError:
        pass
    try:
        import numpy

        source = numpy.random.default_rng(5)

        def with_numpy(size):
            if len(size) == 1:
                made = numpy.ones(size, dtype=numpy.float32)
            else:
                made = source.standard_normal(size, dtype=numpy.float32) / numpy.float32(size[1] ** 0.5)
            return (made.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()

        return with_numpy
    except ImportError:
        source = random.Random(5)

        def plainly(size):
            count = size[0] * (size[1] if len(size) > 1 else 1)
            scale = 1.7 / (size[1] if len(size) > 1 else 1) ** 0.5
            floats = [1.0] * count if len(size) == 1 else [source.uniform(-scale, scale) for _ in range(count)]
            # BF16 is the upper half of FP32.
            return b"".join(struct.pack("<f", value)[2:] for value in floats)

        return plainly


def write_model(folder, shape):
    layers, hidden, intermediate, heads, kv_heads, head, vocabulary = shape
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head, "vocab_size": vocabulary, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }))
    words = {("<unk>" if i == 0 else f"w{i}"): i for i in range(vocabulary)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": byte_level,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    header, at = {}, 0
    for name, size in tensors(shape):
        length = 2 * size[0] * (size[1] if len(size) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    make = values()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in tensors(shape):
            file.write(make(size))
    return at


def manifest(model, budget):
    return f"""apiVersion: modelprofile.dev/v1alpha1
kind: ModelProfile
metadata: {{name: random}}
spec:
  model: {{uri: 'file://{model}'}}
  placement: {{memoryBudget: {budget}}}
  quality: {{onFailure: Warn}}
  profiles:
  - {{name: quality, weights: {{format: FP8}}, kvCache: {{format: FP8E4M3}}}}
  - name: density
    weights: {{format: INT4, groupSize: 64, zeroPoint: Integer}}
    kvCache: {{format: FP8E4M3}}
"""


class Worker:
    def __init__(self, program, options, folder, log):
        held = [socket.socket(), socket.socket()]
        for one in held:
            one.bind(("127.0.0.1", 0))
        self.port, self.admin = (one.getsockname()[1] for one in held)
        for one in held:
            one.close()
        command = [program, "serve", "--config", str(folder / "profile.yaml"), "--port", str(self.port)]
        command += ["--admin-port", str(self.admin), "--device", "cuda", *options]
        variables = {"MODELPROFILE_CACHE": str(folder / "cache"), "MODELPROFILE_ADMIN_TOKEN": "secret", "RUST_LOG": "info"}
        self.process = subprocess.Popen(command, env={**os.environ, **variables}, stderr=log, stdin=subprocess.DEVNULL)

    def ask(self, method, path, body=None, seconds=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=seconds)
        headers = {"authorization": "Bearer secret", "content-type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def is_ready(self):
        try:
            return self.ask("GET", "/readyz", seconds=2)[0] == 200
        except OSError:
            return False

    def state(self):
        return json.loads(self.ask("GET", "/admin/v1/state")[1])


class Streams:
    """Clients that each stream one answer after the other, and note when a token came."""

    def __init__(self, port, count, prompt, tokens):
        self.port, self.prompt, self.tokens = port, prompt, tokens
        self.times, self.gaps, self.failed, self.answers = [], [], [], 0
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(index,), daemon=True) for index in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, index):
        source = random.Random(index)
        while not self.stop.is_set():
            try:
                self.answer(source)
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.failed.append(repr(error))

    def answer(self, source):
        text = " ".join(f"w{source.randrange(3, 120)}" for _ in range(self.prompt))
        body = {"prompt": text, "max_tokens": self.tokens, "ignore_eos": True, "stream": True, "temperature": 1.0,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {answer.read()[:200]}")
        counted, before = 0, None
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(str(event["error"]))
            now, all_tokens = time.monotonic(), (event.get("usage") or {}).get("completion_tokens", 0)
            with self.lock:
                self.times.extend([now] * (all_tokens - counted))
                if before is not None and all_tokens > counted:
                    self.gaps.append((now, now - before))
            if all_tokens > counted:
                counted, before = all_tokens, now
        if counted != self.tokens:
            raise ValueError(f"{counted} tokens of {self.tokens}")
        self.answers += 1

    def rate(self, start, end):
        with self.lock:
            return sum(start <= at < end for at in self.times) / (end - start)

    def longest_gap(self, start, end):
        with self.lock:
            return max((gap for at, gap in self.gaps if start <= at < end), default=0.0)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


def measure(worker, streams, seconds, switches):
    result = {"profiles": {}, "switches": []}
    names = ["quality", "density"]
    for name in names:
        state = worker.state()
        if state["activeProfile"] != name:
            worker.ask("PUT", "/admin/v1/profile", {"profile": name})
        time.sleep(1)
        start = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        state = worker.state()
        (profile,) = [p for p in state["profiles"] if p["name"] == name]
        result["profiles"][name] = {
            "tokensPerSecond": streams.rate(start, end), "longestGapSeconds": streams.longest_gap(start, end),
            "running": state["requests"]["running"], "kvTokens": profile["kvTokens"], "weightBytes": profile["weightBytes"],
        }
    for index in range(switches):
        start = time.monotonic()
        status, text = worker.ask("PUT", "/admin/v1/profile", {"profile": names[index % 2]})
        end = time.monotonic()
        time.sleep(0.7)
        report = json.loads(text) if status == 200 else {"status": status, "answer": text.decode(errors="replace")}
        result["switches"].append({**report, "clientSeconds": end - start, "longestGapSeconds": streams.longest_gap(start, time.monotonic())})
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("worker")
    parser.add_argument("--json", required=True)
    parser.add_argument("--log", default="serve.log")
    parser.add_argument("--kernels")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", help="where the checkpoint goes [default: a temporary folder]")
    parser.add_argument("--budget", default="24Gi")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--switches", type=int, default=6)
    parser.add_argument("--limit", type=float, default=240, help="seconds until it must be ready")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder or tempfile.mkdtemp(prefix="serve-"))
    start = time.monotonic()
    size = write_model(folder / "model", SHAPES[options.shape])
    written = time.monotonic()
    print(f"{size / 1e9:.2f} GB of weights written in {written - start:.1f} s", flush=True)
    (folder / "profile.yaml").write_text(manifest(folder / "model", options.budget))
    with open(options.log, "w") as log:
        extra = ["--kernels", options.kernels] if options.kernels else []
        worker = Worker(options.worker, extra, folder, log)
        try:
            while not worker.is_ready():
                late = time.monotonic() - written > options.limit
                if worker.process.poll() is not None or late:
                    sys.exit(f"the worker {'is not ready in time' if late else 'ended'}; its log is {options.log}")
                time.sleep(0.2)
            ready = time.monotonic()
            print(f"ready after {ready - written:.1f} s", flush=True)
            streams = Streams(worker.port, options.streams, options.prompt, options.tokens)
            result = measure(worker, streams, options.seconds, options.switches)
            streams.end()
            result |= {"shape": options.shape, "streams": options.streams, "readySeconds": ready - written,
                       "answers": streams.answers, "failed": streams.failed, "memory": worker.state()["memory"]}
        finally:
            worker.process.terminate()
            worker.process.wait(30)
    pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if streams.failed or not streams.answers or any(s.get("outcome") != "Completed" for s in result["switches"] if s.get("from") != s.get("to")):
        sys.exit("a request failed, or a switch did")


if __name__ == "__main__":
    main()
