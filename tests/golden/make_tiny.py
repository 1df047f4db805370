#!/usr/bin/env python3
"""Makes the tiny random checkpoints of worker/engine/tests/data with transformers, and golden logits for each.

    python3 -m venv .venv && .venv/bin/pip install torch transformers
    .venv/bin/python tests/golden/make_tiny.py worker/engine/tests/data

Each directory is a Hugging Face checkpoint below 200 KB and golden.json:
prompt (40 token ids, longer than the sliding window of the Mistral one) and the FP32 logits, eager attention, of
positions 20 and 39. The weights are stored in FP32 or BF16 and the golden values are made from what was stored.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
PROMPT = [(7 * i * i + 13 * i + 5) % 128 for i in range(40)]
POSITIONS = [20, 39]


def randomize(model, generator):
    """Weights large enough that every part of the model moves the logits, norms and biases included."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1.0 + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed_tokens" in name:
            parameter.data = noise
        else:
            parameter.data = noise * (1.5 / parameter.shape[-1] ** 0.5)


def make(out, name, model, dtype, seed, shard=None, generation=None):
    directory = out / name
    shutil.rmtree(directory, ignore_errors=True)
    randomize(model, torch.Generator().manual_seed(seed))
    if model.config.tie_word_embeddings:
        model.tie_weights()
    model = model.to(dtype)
    if generation is not None:
        model.generation_config.eos_token_id = generation
    model.save_pretrained(directory, **({"max_shard_size": shard} if shard else {}))
    for file in directory.iterdir():
        file.chmod(0o644)

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0]
    golden = {
        "prompt": PROMPT,
        "logits": {str(p): [round(float(x), 6) for x in logits[p]] for p in POSITIONS},
    }
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    print(name, sorted(f"{p.name}:{p.stat().st_size}" for p in directory.iterdir()))


def main():
    out = Path(sys.argv[1])
    theta = dict(rope_type="default", rope_theta=10000.0)
    make(
        out,
        "llama3-tiny",
        LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True)),
        torch.bfloat16,
        seed=1,
        generation=[2, 3],
    )
    make(
        out,
        "mistral-tiny",
        MistralForCausalLM(
            MistralConfig(**SHAPE, rope_parameters=theta, sliding_window=8, tie_word_embeddings=False)
        ),
        torch.bfloat16,
        seed=2,
        shard="60KB",
    )
    make(
        out,
        "qwen2-tiny",
        Qwen2ForCausalLM(
            Qwen2Config(
                **(SHAPE | {"intermediate_size": 32}),
                rope_parameters=theta | {"rope_theta": 1000000.0},
                tie_word_embeddings=True,
            )
        ),
        torch.float32,
        seed=3,
    )
    make(
        out,
        "qwen3-tiny",
        Qwen3ForCausalLM(
            Qwen3Config(
                **(SHAPE | {"head_dim": 32, "intermediate_size": 64}),
                rope_parameters=theta | {"rope_theta": 1000000.0},
                tie_word_embeddings=False,
            )
        ),
        torch.bfloat16,
        seed=4,
    )


if __name__ == "__main__":
    main()
