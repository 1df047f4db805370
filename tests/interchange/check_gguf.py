"""GGUF files that the worker writes, read by the `gguf` package.

Two claims for each type. The package finds in each tensor the values that the source has, as near as the type's bits
allow. And our reader finds exactly the values that the package finds: the file goes back through the worker to BF16
safetensors, which must be the package's values rounded once.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import make_bf16_checkpoint as hub  # noqa: E402  The path is set above.

# Largest root of the mean squared error of a tensor, as a share of the root of its mean square: about half a step of a
# block's grid for normally distributed weights, and a margin. Mixes hold some tensors at more bits than their name says.
ERRORS = {
    "F16": 4e-4, "BF16": 0, "Q8_0": 0.008, "Q6_K": 0.03, "Q5_K_M": 0.06, "Q4_K_M": 0.12, "Q4_1": 0.12, "Q4_0": 0.14,
}


def read_safetensors(path):
    """BF16 tensors as their 16 bits, FP32 ones as values."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = {"BF16": "<u2", "F32": "<f4"}[entry["dtype"]]
        tensors[name] = numpy.frombuffer(data[8 + size + begin : 8 + size + end], kind).reshape(entry["shape"])
    return tensors


def values(bits):
    return bits if bits.dtype == "<f4" else (bits.astype("<u4") << 16).view("<f4")


def read_gguf(path):
    """Values by the name and in the row order that a Hugging Face checkpoint has, and the type of each."""
    reader = gguf.GGUFReader(path)
    count = hub.Metadata(reader).require
    heads = {"attn_q": count("llama.attention.head_count"), "attn_k": count("llama.attention.head_count_kv")}
    found, kinds = {}, {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        part = tensor.name.split(".")[-2]
        name = hub.hugging_face_name(tensor.name)
        found[name] = hub.unpermute(weights, heads[part]) if part in heads else weights
        kinds[name] = tensor.tensor_type.name
    return found, kinds


def check(worker, source, folder, types=tuple(ERRORS)):
    """Each type from one BF16 checkpoint; gives a line for each, exits on a difference."""
    original = {name: values(bits) for name, bits in read_safetensors(source / "model.safetensors").items()}
    for kind in types:
        limit, file = ERRORS[kind], folder / f"{source.name}-{kind}.gguf"
        worker("export", "gguf", "--model", source, "--type", kind, "--output", file)
        found, kinds = read_gguf(file)
        if found.keys() != original.keys():
            sys.exit(f"error: {file.name} has other tensors than its source: {sorted(found.keys() ^ original.keys())}")
        worst = 0.0
        for name, weights in found.items():
            error = numpy.sqrt(numpy.mean((weights - original[name]) ** 2) / numpy.mean(original[name] ** 2))
            worst = max(worst, float(error))
            if not error <= limit:
                sys.exit(f"error: {file.name}: {name} ({kinds[name]}) is off by {error:.4f}, at most {limit} is {kind}'s rounding")
        artifact = worker.quantize(file, "BF16")
        ours = read_safetensors(artifact / "model.safetensors")
        for name, bits in ours.items():
            expected = found[name] if bits.dtype == "<f4" else hub.bf16(found[name], name)
            if not numpy.array_equal(bits, expected):
                sys.exit(f"error: {file.name}: our reader has other values than the gguf package in {name} ({kinds[name]})")
        mix = sorted(set(kinds.values()) - {"F32"})
        yield {"file": file.name, "tensors": len(found), "types": mix, "worst error": round(worst, 5)}
