"""What the worker writes, in the hands of readers that are not ours: run.py --worker PATH --operator PATH --smollm2 DIRECTORY

Started by tests/scripts/test-interchange.sh. Every export of a tiny checkpoint is read by check_hub.py and every GGUF type
by check_gguf.py, from a model with blocks of 256 and from the first layers of a real one; then a real model is scored by
transformers and compressed-tensors and by the worker: perplexity and divergence must agree. Beside that GUIDE.md is followed
(guide.py): the worker's processes and the readers in Python then have a core each. Ends at the first difference with a line
that says where; what the guide has found is told when the readers are through.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
import transformers
from transformers import CompressedTensorsConfig

import check_gguf
import check_hub
import guide

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "worker/engine/tests/data/llama3-tiny"
TEXT = ROOT / "worker/src/texts/evaluation.txt"
# Recipe and the layouts that can hold it. The first is compared with transformers, the others with the first.
EXPORTS = [
    ("FP8", ["compressed-tensors", "modelopt"]),
    ("FP8:tensor", ["compressed-tensors", "modelopt"]),
    ("INT8", ["compressed-tensors"]),
    ("INT4:g32:symmetric", ["compressed-tensors", "autoawq", "gptq", "modelopt"]),
    ("INT4:g32:integer", ["compressed-tensors", "autoawq", "gptq"]),
]
# The same with what calibration decides: of a real model's first layers, for it takes a tokenizer. Norms and rows hold what
# the methods fold into them.
CALIBRATED = [
    ("FP8:static", ["compressed-tensors", "modelopt"]),
    ("INT8:smoothquant", ["compressed-tensors"]),
    ("INT4:g64:symmetric:gptq", ["compressed-tensors", "autoawq", "gptq", "modelopt"]),
    ("INT4:g64:integer:awq", ["compressed-tensors", "autoawq", "gptq"]),
]
SCORED = ["FP8", "INT8", "INT4:g64:integer"]
LAYERS, WINDOW, WINDOWS = 2, 256, 6


class Worker:
    def __init__(self, binary, cache):
        self.binary, self.cache = binary, cache

    def __call__(self, *arguments):
        command = [str(part) for part in (self.binary, *arguments)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"error: {' '.join(command)} failed:\n{ran.stderr}")
        return ran.stdout

    def quantize(self, model, recipe):
        """The directory of the artifact."""
        output = self("quantize", "--model", model, "--format", recipe, "--no-measure", "--calibration-tokens", 2048,
                      "--cache", self.cache)
        return self.cache / "artifacts" / re.search(r"MiB\s+(\S+)", output).group(1)

    def export(self, artifact, layout, output):
        self("export", "hub", "--model", artifact, "--layout", layout, "--output", output)
        return output

    def scores(self, model, recipes):
        """{recipe: (perplexity, mean divergence)} over the windows' second halves."""
        output = self("evaluate", "--model", model, "--format", ",".join(recipes), "--text", TEXT, "--window", WINDOW,
                      "--characters", WINDOW * WINDOWS * 6, "--skip-generation", "--activations", "bf16", "--cache", self.cache)
        rows = re.findall(r"^\S+\s+[\d.]+\s+([\d.]+) ±\s*[\d.]+\s+[+-][\d.]+%\s+([\d.]+) ±", output, re.MULTILINE)
        if len(rows) != len(recipes):
            sys.exit(f"error: expected {len(recipes)} rows of scores in\n{output}")
        return {recipe: tuple(map(float, row)) for recipe, row in zip(recipes, rows)}


class Tally:
    """Prints what was checked, with the seconds that it took, and counts it."""

    def __init__(self):
        self.checks, self.lock = 0, threading.Lock()

    def count(self, checks=1):
        with self.lock:
            self.checks += checks

    def print(self, reports):
        begun = time.monotonic()
        for report in reports:
            self.count()
            with self.lock:
                print(json.dumps(report | {"seconds": round(time.monotonic() - begun, 1)}), flush=True)
            begun = time.monotonic()


def truncate(source, target):
    """The first layers of a checkpoint."""
    target.mkdir()
    keep = lambda name: not name.startswith("model.layers.") or int(name.split(".")[2]) < LAYERS
    tensors = check_gguf.read_safetensors(source / "model.safetensors")
    check_gguf.hub.write_safetensors(target / "model.safetensors", {n: t for n, t in tensors.items() if keep(n)})
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": LAYERS}
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    return target


@torch.no_grad()
def foreign_scores(models, tokenizer):
    """{name: (perplexity, mean divergence from the first)} by transformers, over the same tokens."""
    text = TEXT.read_text(encoding="utf-8")[: WINDOW * WINDOWS * 6]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    reference, scores = None, {}
    for name, directory in models.items():
        # Weights alone are dequantized first: with zero points transformers 5.24 loads no file as it is, not even
        # llm-compressor's. Where activations are quantized, too, the reader does that.
        settings = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if "INT4" in name else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings).eval()
        found = torch.log_softmax(model(rows).logits[:, WINDOW // 2 - 1 : -1].float(), -1)
        reference = found if reference is None else reference
        nll = -found.gather(2, rows[:, WINDOW // 2 :, None]).mean().item()
        divergence = (reference.exp() * (reference - found)).sum(-1).mean().item()
        scores[name] = (math.exp(nll), divergence)
    return scores


def compare_scores(worker, model, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ours = worker.scores(model, ["BF16", *SCORED])
    models = {"BF16": model}
    for recipe in SCORED:
        models[recipe] = worker.export(worker.quantize(model, recipe), "compressed-tensors", folder / recipe.replace(":", "-"))
    for name, (perplexity, divergence) in foreign_scores(models, tokenizer).items():
        own_perplexity, own_divergence = ours[name]
        report = {"model": name, "perplexity": [round(own_perplexity, 3), round(perplexity, 3)],
                  "divergence": [round(own_divergence, 6), round(divergence, 6)]}
        # One computes in FP32, the other in BF16 and in INT8 products, with roundings of activations in other places. Of two
        # models that are each 0.025 away from a third, a token's logarithms differ by at most some sqrt(4 x 0.025) = 0.3, which
        # is a percent over these thousand tokens: three of them are allowed. A wrong scale or order of rows gives a multiple.
        if not abs(own_perplexity / perplexity - 1) <= 0.03 or not abs(own_divergence - divergence) <= 0.1 * divergence + 2e-3:
            sys.exit(f"error: transformers scores what we wrote differently (ours, theirs): {json.dumps(report)}")
        yield report


def wide(target):
    """A random Llama whose rows divide into blocks of 256, which the K types need."""
    generator = numpy.random.default_rng(3)
    config = json.loads((TINY / "config.json").read_text())
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config |= shape | {"num_hidden_layers": 2, "vocab_size": 128, "tie_word_embeddings": False}
    config.pop("rope_parameters", None)
    hidden, inner, kv = 256, 512, 128
    shapes = {"model.embed_tokens": (128, hidden), "lm_head": (128, hidden), "model.norm": (hidden,)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm": (hidden,), at + "post_attention_layernorm": (hidden,)}
        shapes |= {at + f"self_attn.{part}_proj": (rows, hidden) for part, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden))}
        shapes |= {at + "mlp.gate_proj": (inner, hidden), at + "mlp.up_proj": (inner, hidden), at + "mlp.down_proj": (hidden, inner)}
    tensors = {f"{name}.weight": check_gguf.hub.bf16(generator.normal(0, 0.05, shape).astype("<f4"), name)
               for name, shape in shapes.items()}
    target.mkdir()
    check_gguf.hub.write_safetensors(target / "model.safetensors", tensors)
    (target / "config.json").write_text(json.dumps(config))
    return target


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, required=True)
    parser.add_argument("--operator", type=Path, required=True)
    parser.add_argument("--smollm2", type=Path, required=True)
    arguments = parser.parse_args()
    start, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as beside:
        folder = Path(name)
        worker = Worker(arguments.worker, folder / "cache")
        small = truncate(arguments.smollm2, folder / "smollm2-layers")
        followed = beside.submit(tally.print, guide.follow(arguments.worker, arguments.operator, small, folder / "guide"))
        for source, recipe, layouts in [(TINY, *row) for row in EXPORTS] + [(small, *row) for row in CALIBRATED]:
            artifact, reference = worker.quantize(source, recipe), None
            for layout in layouts:
                output = worker.export(artifact, layout, folder / f"{recipe}-{layout}".replace(":", "-"))
                values = check_hub.check(output, reference)
                reference = reference or values
                tally.count()
        # K types where rows divide into blocks of 256, and the types that stand in for them where they do not.
        for source, types in ((wide(folder / "wide"), check_gguf.ERRORS), (small, ["Q5_K_M", "Q4_K_M"])):
            tally.print(check_gguf.check(worker, source, folder, types))
        tally.print(compare_scores(worker, arguments.smollm2, folder))
        followed.result()
        tally.print(guide.results(folder / "guide"))
    print(f"{tally.checks} passed, 0 failed; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
