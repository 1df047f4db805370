"""Loads a quantized checkpoint with foreign readers on the CPU and compares it with plain weights.

    check_hub.py DIRECTORY [--reference DIRECTORY]

1. Each linear layer is dequantized by a reader that is not ours: `compressed-tensors` for its own layout, the published
   formulas in NumPy for AutoAWQ, GPTQ and ModelOpt.
2. A plain FP32 model is built from those values with transformers; for `compressed-tensors` the directory itself is loaded
   with `from_pretrained`, too. Both give the same logits on fixed tokens.
3. With --reference, the same is done there, and both directories must hold the same weights: one checkpoint in two layouts.

Prints one line of JSON. Needs torch, transformers, safetensors; compressed-tensors for its layout.
"""

import argparse
import json
import pathlib
import sys

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


def compressed(parts, config):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = next(iter(config["config_groups"].values()))
    scheme = QuantizationScheme.model_validate({k: v for k, v in group.items() if k != "format"})
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    parts = {k: v.float() if k == "weight_scale" else v for k, v in parts.items()}
    return compressor.decompress(parts, scheme)["weight"].float()


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--reference", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    layout, config, values = plain(arguments.directory)
    tokens = torch.randint(0, config["vocab_size"], (2, 24))
    expected = logits(model_of(config, values), tokens)
    report = {"layout": layout, "tensors": len(values)}
    if layout == "compressed-tensors":
        loaded = transformers.AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=torch.float32).eval()
        found = logits(loaded, tokens)
        report["kld"] = torch.nn.functional.kl_div(
            found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1).mean().item()
        report["worst"] = ((found - expected).abs().max() / expected.abs().max()).item()
        # Activations of FP8 and INT8 are quantized by the reader: the weights alone would agree to rounding.
        activations = next(iter(config["quantization_config"]["config_groups"].values()))["input_activations"]
        limit = 0.1 if activations else 1e-4
        if not report["worst"] <= limit:
            sys.exit(f"transformers gives other logits: {report}")
    if arguments.reference:
        _, _, reference = plain(arguments.reference)
        if reference.keys() != values.keys():
            sys.exit(f"other tensors than {arguments.reference}: {reference.keys() ^ values.keys()}")
        worst = {n: (values[n] - reference[n]).abs().max().item() for n in values}
        report["difference"] = max(worst.values())
        if report["difference"] != 0:
            sys.exit(f"other weights than {arguments.reference}: {max(worst, key=worst.get)} {report}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
