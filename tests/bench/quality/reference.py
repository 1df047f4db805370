"""Quantizes a checkpoint to INT4 with another tool, as that tool publishes it.

    reference.py TOOL MODEL OUT --group 128 [--symmetric] [--tokens CALIBRATION.json] [--sequence 512] [--dtype bfloat16]

OUT/dequantized holds the same weights in FP32, as the tool's own code reads them back from OUT.
TOOL is gptqmodel, autoawq, llmcompressor-gptq, -awq, -rtn or -fp8 (rows, dynamic activations: the bits do not count); it runs in the environment that has
that package. Calibration data are token ids, so that every tool sees the same; each keeps its own defaults for everything
that is not an option here, and leaves embeddings and the output layer alone.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import safetensors.torch
import torch


def sequences(arguments):
    """The calibration tokens in sequences of one length."""
    ids, length = json.loads(arguments.tokens.read_text()), arguments.sequence
    return [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]


def tensors(directory):
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= safetensors.torch.load_file(file)
    return found


def save_dequantized(arguments, linear):
    """A plain FP32 checkpoint: these linear layers, everything else as the quantized one has it."""
    plain = {name: value.float() for name, value in tensors(arguments.out).items()
             if name.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight"))}
    plain |= {f"{name}.weight": value.detach().float().contiguous() for name, value in linear.items()}
    target = arguments.out / "dequantized"
    target.mkdir()
    safetensors.torch.save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(arguments.model / "config.json", target)


def gptqmodel(arguments):
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=4, group_size=arguments.group, sym=arguments.symmetric,
                              desc_act=arguments.act_order, offload_to_disk=False)
    model = GPTQModel.load(str(arguments.model), settings, device="cpu", dtype=arguments.dtype)
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in sequences(arguments)]
    model.quantize(data, batch_size=4)
    model.save(str(arguments.out))

    read = GPTQModel.load(str(arguments.out), device="cpu", backend="torch")
    return {name: module.dequantize_weight().T for name, module in read.model.named_modules() if hasattr(module, "qweight")}


def autoawq(arguments):
    from awq import AutoAWQForCausalLM

    if arguments.symmetric:
        raise SystemExit("error: AutoAWQ's layout has zero points; leave --symmetric out")
    model = AutoAWQForCausalLM.from_pretrained(
        str(arguments.model), device_map="cpu", torch_dtype=arguments.dtype, use_cache=False
    )
    rows = sequences(arguments)
    # The tool shuffles before it takes its samples; the same rows whatever the order.
    random.seed(0)
    model.quantize(
        None,
        quant_config={"zero_point": True, "q_group_size": arguments.group, "w_bit": 4, "version": "GEMM"},
        calib_data=rows,
        max_calib_samples=len(rows),
        max_calib_seq_len=arguments.sequence,
    )
    model.save_quantized(str(arguments.out))

    from awq.utils.packing_utils import dequantize_gemm

    parts = tensors(arguments.out)
    names = [name.removesuffix(".qweight") for name in parts if name.endswith(".qweight")]
    part = lambda name, kind: parts[f"{name}.{kind}"].float() if kind == "scales" else parts[f"{name}.{kind}"]
    return {
        name: dequantize_gemm(*(part(name, kind) for kind in ("qweight", "qzeros", "scales")), 4, arguments.group).T
        for name in names
    }


def llmcompressor(arguments):
    import datasets
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    # The tool pins memory for a GPU without asking whether there is one.
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype)
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=arguments.group,
                               symmetric=arguments.symmetric)
    target = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["lm_head"]}
    method = arguments.tool.split("-")[1]
    recipe = {
        "rtn": [QuantizationModifier(**target)],
        "gptq": [GPTQModifier(**target)],
        "fp8": [QuantizationModifier(targets=["Linear"], scheme="FP8_DYNAMIC", ignore=["lm_head"])],
        "awq": [AWQModifier(duo_scaling="both"), QuantizationModifier(**target)],
    }[method]
    if method in ("rtn", "fp8"):
        oneshot(model=model, recipe=recipe)
    else:
        rows = sequences(arguments)
        data = datasets.Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        oneshot(model=model, recipe=recipe, dataset=data, max_seq_length=arguments.sequence,
                num_calibration_samples=len(rows), shuffle_calibration_samples=False)
    model.save_pretrained(arguments.out, save_compressed=True)
    # Engines want the tokenizer beside the weights.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(arguments.model) / name, arguments.out)

    plain = CompressedTensorsConfig(run_compressed=False)
    read = AutoModelForCausalLM.from_pretrained(arguments.out, quantization_config=plain, dtype=torch.float32)
    return {name: module.weight for name, module in read.named_modules() if "_proj" in name.rsplit(".", 1)[-1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--act-order", action="store_true", help="GPTQModel: columns by falling activation (desc_act)")
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shutil.rmtree(arguments.out, ignore_errors=True)
    quantize = {"gptqmodel": gptqmodel, "autoawq": autoawq}.get(arguments.tool, llmcompressor)
    save_dequantized(arguments, quantize(arguments))


if __name__ == "__main__":
    main()
