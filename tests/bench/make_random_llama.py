"""Makes a checkpoint of Llama-3.2-1B's shape with random weights: how fast a model is does not depend on their values.

    make_random_llama.py DIRECTORY --tokenizer CHECKPOINT [--seed 1]

Writes config.json, generation_config.json, model.safetensors (BF16, 2.5 GB), tokenizer.json and tokenizer_config.json. The
tokenizer is that of another checkpoint; entries that no merge leads to fill its vocabulary up to the model's, so that any
token that random weights choose can be written down. The same seed gives the same file on any machine: each tensor has a
generator of its own, and a piece of it is drawn, rounded and written before the next, in 64 MB. Needs the package numpy.
"""

import argparse
import json
import math
import os
import shutil
from pathlib import Path

import numpy

SHAPE = dict(hidden=2048, layers=16, heads=32, kv_heads=8, head=64, ffn=8192, vocab=128256)
# Values of one piece.
PIECE = 1 << 23
NORM = 1.0


def config(hidden, layers, heads, kv_heads, head, ffn, vocab):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        # Room for what is measured; the scaling of the positions that the original needs beyond costs nothing and is left out.
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def tensors(hidden, layers, heads, kv_heads, head, ffn, vocab):
    """(name, shape, standard deviation; none for a norm) in the order of the file. The deviations keep activations near 1."""
    wide, narrow = 1 / math.sqrt(hidden), 1 / math.sqrt(ffn)
    yield "model.embed_tokens.weight", (vocab, hidden), wide
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield f"{at}input_layernorm.weight", (hidden,), None
        yield f"{at}self_attn.q_proj.weight", (heads * head, hidden), wide
        yield f"{at}self_attn.k_proj.weight", (kv_heads * head, hidden), wide
        yield f"{at}self_attn.v_proj.weight", (kv_heads * head, hidden), wide
        yield f"{at}self_attn.o_proj.weight", (hidden, heads * head), wide
        yield f"{at}post_attention_layernorm.weight", (hidden,), None
        yield f"{at}mlp.gate_proj.weight", (ffn, hidden), wide
        yield f"{at}mlp.up_proj.weight", (ffn, hidden), wide
        yield f"{at}mlp.down_proj.weight", (hidden, ffn), narrow
    yield "model.norm.weight", (hidden,), None


def bf16(values):
    """The upper half of FP32 numbers, rounded to nearest, ties to even."""
    bits = values.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def pieces(count, deviation, generator):
    """BF16 values of a tensor, one piece after the other."""
    for begin in range(0, count, PIECE):
        size = min(PIECE, count - begin)
        if deviation is None:
            yield bf16(numpy.full(size, NORM, dtype="<f4"))
        else:
            yield bf16(generator.standard_normal(size, dtype=numpy.float32) * numpy.float32(deviation))


def write_safetensors(path, listed, seed):
    """The format: length of the header, header, bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in listed:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for index, (_, shape, deviation) in enumerate(listed):
            for piece in pieces(math.prod(shape), deviation, numpy.random.Generator(numpy.random.PCG64([seed, index]))):
                out.write(piece.tobytes())
    return offset


def filled(tokenizer, vocab):
    """The tokenizer with a vocabulary of exactly that size. What is added reads as itself and comes of no text."""
    known = tokenizer["model"]["vocab"]
    taken = set(known.values()) | {token["id"] for token in tokenizer["added_tokens"]}
    added = {f"unused{id}": id for id in range(vocab) if id not in taken}
    if added.keys() & known.keys():
        raise SystemExit("error: the tokenizer has a token like unused1 of its own; give another checkpoint's")
    known.update(added)
    return tokenizer


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="the checkpoint whose tokenizer it gets")
    parser.add_argument("--seed", type=int, default=1)
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    arguments = parser.parse_args()
    shape = {name: getattr(arguments, name) for name in SHAPE}

    # Under another name until it is whole: a directory that exists is complete.
    target = arguments.directory
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    settings = config(**shape)
    size = write_safetensors(part / "model.safetensors", list(tensors(**shape)), arguments.seed)
    write_json(part / "config.json", settings)
    write_json(part / "generation_config.json", {key: settings[key] for key in ("bos_token_id", "eos_token_id")})
    tokenizer = json.loads((arguments.tokenizer / "tokenizer.json").read_text("utf-8"))
    write_json(part / "tokenizer.json", filled(tokenizer, shape["vocab"]))
    text = json.loads((arguments.tokenizer / "tokenizer_config.json").read_text("utf-8"))
    write_json(part / "tokenizer_config.json", {**text, "model_max_length": settings["max_position_embeddings"]})
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    print(f"{target}: {size / 1e9:.2f} GB of random weights")


if __name__ == "__main__":
    main()
