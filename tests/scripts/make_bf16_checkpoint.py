"""Makes a Hugging Face directory in BF16 from a GGUF file of the Llama family.

    make_bf16_checkpoint.py MODEL.gguf DIRECTORY

Writes config.json, generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json. Every weight is
the value that the GGUF file's blocks stand for, rounded once to BF16. Needs the packages gguf and numpy.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import gguf
import numpy

# Pre-tokenizers that can be written down here, by tokenizer.ggml.pre; the same ones as the worker's for GPT-2 splits.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
    "gpt-2": BYTE_LEVEL,
    "default": BYTE_LEVEL,
}
CONTROL, USER_DEFINED = 3, 4

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hugging_face_name(name):
    stem, suffix = name.rsplit(".", 1)
    if stem in MODEL:
        return f"{MODEL[stem]}.{suffix}"
    block, number, part = stem.split(".")
    if block != "blk" or part not in LAYER:
        sys.exit(f"error: no place in a Llama checkpoint for tensor {name}")
    return f"model.layers.{number}.{LAYER[part]}.{suffix}"


def unpermute(rows, heads):
    """GGUF keeps the rotary pairs of Q and K interleaved, Hugging Face in two halves of each head."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def bf16(values, name):
    """The upper half of an FP32 number, rounded to nearest, ties to even."""
    bits = numpy.ascontiguousarray(values, dtype="<f4").view("<u4")
    if not numpy.isfinite(values).all():
        sys.exit(f"error: tensor {name} holds a NaN or an infinity")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors):
    """`tensors` maps names to uint16 arrays that hold BF16. The format: length of the header, header, bytes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            out.write(values.tobytes())


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


class Metadata:
    def __init__(self, reader):
        self.fields = reader.fields

    def get(self, key, default=None):
        field = self.fields.get(key)
        return default if field is None else field.contents()

    def require(self, key):
        value = self.get(key)
        if value is None:
            sys.exit(f"error: the file has no {key}")
        return value


def config(metadata, tied):
    key = lambda name: metadata.require(f"llama.{name}")
    heads, hidden = key("attention.head_count"), key("embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(metadata.require("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": hidden // heads,
        "max_position_embeddings": key("context_length"),
        # Stored in FP32: 1e-5 reads back as 9.99999974e-06. Seven digits are what FP32 keeps.
        "rms_norm_eps": float(f"{key('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": metadata.get("llama.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def tokenizer(metadata):
    model, pre = metadata.require("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        sys.exit(f"error: tokenizer.ggml.model {model} with pre {pre} is not supported; {', '.join(PRE_TOKENIZERS)} are")
    tokens, kinds = metadata.require("tokenizer.ggml.tokens"), metadata.require("tokenizer.ggml.token_type")
    added = [
        {"id": id, "content": tokens[id], "special": kind == CONTROL, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for id, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata.require("tokenizer.ggml.merges")],
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()

    reader = gguf.GGUFReader(arguments.gguf)
    metadata = Metadata(reader)
    architecture = metadata.require("general.architecture")
    if architecture != "llama":
        sys.exit(f"error: architecture {architecture} is not supported; llama is")
    names = {tensor.name for tensor in reader.tensors}
    settings = config(metadata, tied="output.weight" not in names)
    heads = {"attn_q": settings["num_attention_heads"], "attn_k": settings["num_key_value_heads"]}

    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = unpermute(values, heads[part])
        tensors[hugging_face_name(tensor.name)] = bf16(values, tensor.name)

    # Under another name until it is whole: a directory that exists is complete.
    target = arguments.directory
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_safetensors(part / "model.safetensors", tensors)
    write_json(part / "config.json", settings)
    special = {key: settings[key] for key in ("bos_token_id", "eos_token_id") if settings[key] is not None}
    write_json(part / "generation_config.json", special)
    write_json(part / "tokenizer.json", tokenizer(metadata))
    tokens = metadata.require("tokenizer.ggml.tokens")
    text = {name.removesuffix("_id"): tokens[id] for name, id in special.items()}
    write_json(part / "tokenizer_config.json", {
        **text,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
    })
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    count = sum(values.size for values in tensors.values())
    print(f"{target}: {len(tensors)} tensors, {count / 1e6:.1f} M weights")


if __name__ == "__main__":
    main()
