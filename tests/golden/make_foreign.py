#!/usr/bin/env python3
"""Makes the tiny quantized checkpoints of worker/engine/tests/data/foreign, with the tools that people publish with.

    make_foreign.py worker/engine/tests/data/foreign --gptqmodel PYTHON --autoawq PYTHON --llmcompressor PYTHON

Each PYTHON is an environment that has the tool (tests/scripts/bench-quality.sh installs them); this script's own needs
torch, transformers, safetensors and tokenizers. The source is a random Llama below 200 KB. golden.json holds a prompt and
FP32 logits of positions 20 and 39 that transformers computes from the weights as the tool itself reads them back.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import tokenizers
import torch
from make_tiny import POSITIONS, PROMPT, SHAPE, randomize
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

REFERENCE = Path(__file__).resolve().parents[1] / "bench" / "quality" / "reference.py"
# Directory, environment, tool, options.
CASES = [
    ("gptq-symmetric", "gptqmodel", "gptqmodel", ["--symmetric", "--dtype", "float16"]),
    ("gptq-act-order", "gptqmodel", "gptqmodel", ["--act-order", "--dtype", "float16"]),
    ("awq-gemm", "autoawq", "autoawq", ["--dtype", "float16"]),
    ("compressed-tensors-gptq", "llmcompressor", "llmcompressor-gptq", ["--symmetric"]),
    ("compressed-tensors-awq", "llmcompressor", "llmcompressor-awq", []),
]
GROUP, SEQUENCE, ROWS = 32, 64, 32


def make_source(directory):
    # AutoAWQ takes rows in blocks of 64, which the KV heads must fill.
    shape = SHAPE | {"intermediate_size": 128, "head_dim": 32}
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    randomize(model, torch.Generator().manual_seed(11))
    model.to(torch.bfloat16).save_pretrained(directory)
    # The tools want a tokenizer though they get token ids.
    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(shape["vocab_size"])}, unk_token="t0")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), bos_token="t1", eos_token="t2", pad_token="t0", unk_token="t0"
    ).save_pretrained(directory)


def golden(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0]
    return {"prompt": PROMPT, "logits": {str(p): [round(float(x), 6) for x in logits[p]] for p in POSITIONS}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("gptqmodel", "autoawq", "llmcompressor"):
        parser.add_argument(f"--{name}", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, tokens, made = Path(folder) / "source", Path(folder) / "tokens.json", Path(folder) / "made"
        make_source(source)
        ids = torch.randint(0, SHAPE["vocab_size"], (ROWS * SEQUENCE,), generator=torch.Generator().manual_seed(5))
        tokens.write_text(json.dumps(ids.tolist()))
        for name, environment, tool, options in CASES:
            python = getattr(arguments, environment)
            if python is None:
                print(f"{name}: left out, no --{environment}")
                continue
            command = [python, REFERENCE, tool, source, made, "--group", GROUP, "--tokens", tokens, "--sequence", SEQUENCE,
                       "--threads", 1, *options]
            subprocess.run([str(part) for part in command], check=True)
            target = arguments.out / name
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for file in ("config.json", "quantize_config.json", "quant_config.json", "model.safetensors"):
                if (made / file).exists():
                    shutil.copyfile(made / file, target / file)
            (target / "golden.json").write_text(json.dumps(golden(made / "dequantized")) + "\n")
            print(name, sorted(f"{p.name}:{p.stat().st_size}" for p in target.iterdir()), flush=True)


if __name__ == "__main__":
    main()
