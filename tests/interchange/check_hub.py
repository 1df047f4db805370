"""Loads quantized checkpoints with foreign readers on the CPU and compares them with plain weights.

    check_hub.py DIRECTORY [DIRECTORY ...]

The directories are one checkpoint in several layouts. For each of them:

1. Each linear layer is dequantized by a reader that is not ours: `compressed-tensors` for its own layout, the published
   formulas in NumPy for AutoAWQ, GPTQ and ModelOpt. All directories must hold the very same values.
2. For `compressed-tensors`, `from_pretrained` loads the directory. With activations left in FP32, its logits are those of a
   plain model of the same values, to 1e-4 of the largest; with activations quantized as the configuration says, the
   divergence is printed. Zero points are the exception: compressed-tensors 0.20.0 expects them unpacked when transformers
   loads a model, which its own files are not, so that only 1 is checked: there it packs them as the file has them.

Prints one line of JSON for each. Needs torch, transformers, safetensors, compressed-tensors.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy
import torch
import transformers
from safetensors import safe_open

# Eight 4-bit columns of an AutoAWQ word, from the lowest bits.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def tensors_of(directory):
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def nibbles(words, axis, order=range(8)):
    """I32 words unpacked along an axis."""
    words = words.numpy().view(numpy.uint32)
    parts = [None] * 8
    for place, code in enumerate(order):
        parts[code] = (words >> (4 * place)) & 15
    stacked = numpy.stack(parts, axis=axis + 1)
    shape = list(words.shape)
    shape[axis] *= 8
    return torch.from_numpy(stacked.reshape(shape).astype(numpy.float32))


def awq(parts, config):
    group = parts["qweight"].shape[0] // parts["scales"].shape[0]
    codes = nibbles(parts["qweight"], 1, AWQ_ORDER)
    zeros = nibbles(parts["qzeros"], 1, AWQ_ORDER).repeat_interleave(group, 0)
    return ((codes - zeros) * parts["scales"].float().repeat_interleave(group, 0)).T


def gptq(parts, config):
    codes = nibbles(parts["qweight"], 0)
    zeros = nibbles(parts["qzeros"], 1) + (1 if config.get("checkpoint_format", "gptq") == "gptq" else 0)
    of = parts["g_idx"].long()
    return ((codes - zeros[of]) * parts["scales"].float()[of]).T


def modelopt(parts, config):
    weight, scale = parts["weight"], parts["weight_scale"].float()
    if weight.dtype == torch.float8_e4m3fn:
        return weight.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    low, high = weight & 15, weight >> 4
    codes = torch.stack([low, high], 1).reshape(-1, weight.shape[1]).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes).float()
    return codes * scale.repeat_interleave(weight.shape[1] // scale.shape[1], 1)


def scheme_of(config):
    from compressed_tensors.quantization import QuantizationScheme

    group = next(iter(config["config_groups"].values()))
    return QuantizationScheme.model_validate({k: v for k, v in group.items() if k != "format"})


def compressed(parts, config):
    from compressed_tensors.compressors import BaseCompressor

    scheme = scheme_of(config)
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    parts = {k: v.float() if k == "weight_scale" else v for k, v in parts.items()}
    decompressed = compressor.decompress(parts, scheme)
    # The library packs the values again into the very words of the file.
    again = compressor.compress(decompressed, scheme)
    for name in ("weight_packed", "weight_zero_point"):
        if name in parts and not torch.equal(parts[name], again[name]):
            sys.exit(f"compressed-tensors packs {name} in another way")
    return decompressed["weight"].float()


def plain(directory):
    """Every tensor as FP32 values, by another reader than ours, and the layout."""
    config = json.loads((directory / "config.json").read_text())
    quantization = config.get("quantization_config")
    layout = (quantization or {}).get("quant_method", "modelopt")
    if quantization is None:
        quantization = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    reader = {"awq": awq, "gptq": gptq, "modelopt": modelopt, "compressed-tensors": compressed}[layout]
    layers, values = {}, {}
    for name, tensor in tensors_of(directory).items():
        module, _, part = name.rpartition(".")
        if part in ("bias",) or module.endswith("norm") or module.endswith(("embed_tokens", "lm_head")):
            values[name] = tensor.float()
        elif part not in ("k_scale", "v_scale"):
            layers.setdefault(module, {})[part] = tensor
    for module, parts in layers.items():
        values[f"{module}.weight"] = reader(parts, quantization).contiguous()
    return layout, config, values


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits.float()


def model_of(config, values):
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    settings = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(values, strict=False)
    missing = [name for name in missing if not (name == "lm_head.weight" and settings.tie_word_embeddings)]
    if missing or unexpected:
        sys.exit(f"tensors that are missing {missing} or too many {unexpected}")
    model.tie_weights()
    return model.eval()


def divergence(found, expected):
    found, expected = found.log_softmax(-1), expected.log_softmax(-1)
    return torch.nn.functional.kl_div(found, expected, log_target=True, reduction="none").sum(-1).mean().item()


def load(directory, activations):
    config = transformers.AutoConfig.from_pretrained(directory)
    if not activations:
        for group in config.quantization_config["config_groups"].values():
            group["input_activations"] = None
    return transformers.AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32).eval()


def check(directory, reference):
    begun = time.monotonic()
    layout, config, values = plain(directory)
    report = {"directory": str(directory), "layout": layout, "tensors": len(values)}
    if layout == "compressed-tensors" and scheme_of(config["quantization_config"]).weights.symmetric:
        torch.manual_seed(0)
        tokens = torch.randint(0, config["vocab_size"], (2, 24))
        expected = logits(model_of(config, values), tokens)
        found = logits(load(directory, activations=False), tokens)
        report["worst"] = ((found - expected).abs().max() / expected.abs().max()).item()
        if not report["worst"] <= 1e-4:
            sys.exit(f"transformers gives other logits: {report}")
        report["divergence"] = divergence(logits(load(directory, activations=True), tokens), expected)
    if reference is not None:
        if reference.keys() != values.keys():
            sys.exit(f"{directory} holds other tensors: {reference.keys() ^ values.keys()}")
        differing = [name for name in values if not torch.equal(values[name], reference[name])]
        if differing:
            sys.exit(f"{directory} holds other values: {differing}")
    report["seconds"] = round(time.monotonic() - begun, 1)
    print(json.dumps(report), flush=True)
    return values


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directories", type=pathlib.Path, nargs="+")
    reference = None
    for directory in parser.parse_args().directories:
        values = check(directory, reference)
        reference = values if reference is None else reference


if __name__ == "__main__":
    main()
