"""Scores plain weights of checkpoints on one text: perplexity and mean KL divergence from the first.

    score.py MODEL --text FILE --windows 64 [--window 512] NAME=DIRECTORY...
    score.py MODEL --dequantize OUT NAME=DIRECTORY    writes that model in FP32, for tools that read plain checkpoints

MODEL is the checkpoint in BF16; each DIRECTORY holds a plain checkpoint or one that `compressed-tensors` reads, which is
dequantized. Everything is computed in FP32, so that only the weights differ. Embeddings and output layer are MODEL's in
every candidate: tools differ in what they leave in 16 bit, and the linear layers are what is compared.
Both measures are taken over the second half of each window, as llama.cpp does. `noise` is the standard error of the
perplexity's difference from the first model's, tokens paired. Prints JSON.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig


def load(directory):
    quantized = "quantization_config" in json.loads((directory / "config.json").read_text())
    settings = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if quantized else {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings).eval()


def log_probabilities(model, tokens):
    """Of each next token in the second half: [window / 2, vocabulary]."""
    logits = model(input_ids=tokens[None], use_cache=False).logits[0]
    return torch.log_softmax(logits[len(tokens) // 2 - 1 : -1], dim=-1)


@torch.no_grad()
def score(models, rows):
    """Sums over all rows; the first model is the reference."""
    sums = {name: {"nll": 0.0, "kld": 0.0, "difference": 0.0, "square": 0.0} for name in models}
    for row in rows:
        reference, exact, next_tokens = None, None, row[len(row) // 2 :, None]
        for name, model in models.items():
            found = log_probabilities(model, row)
            reference = found if reference is None else reference
            nll = -found.gather(1, next_tokens)
            exact = nll if exact is None else exact
            sums[name]["nll"] += nll.sum().item()
            sums[name]["difference"] += (nll - exact).sum().item()
            sums[name]["square"] += (nll - exact).square().sum().item()
            sums[name]["kld"] += (reference.exp() * (reference - found)).sum().item()
    count = len(rows) * (rows.shape[1] // 2)
    return {name: figures(s, count) for name, s in sums.items()}


def figures(sums, count):
    perplexity = math.exp(sums["nll"] / count)
    variance = sums["square"] / count - (sums["difference"] / count) ** 2
    return {"perplexity": perplexity, "noise": perplexity * math.sqrt(max(variance, 0.0) / count), "kld": sums["kld"] / count}


def candidate(directory, base):
    """A quantized model with the ends of `base`."""
    model = load(directory)
    model.set_input_embeddings(base.get_input_embeddings())
    model.set_output_embeddings(base.get_output_embeddings())
    return model


def dequantize(source, directory, output):
    """Writes a candidate as a plain checkpoint."""
    model = candidate(directory, load(source))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    plain = AutoConfig.from_pretrained(source, dtype=torch.float32)
    shutil.rmtree(output, ignore_errors=True)
    plain.save_pretrained(output)
    tied = ["lm_head.weight"] if plain.tie_word_embeddings else []
    save_file({name: value for name, value in weights.items() if name not in tied}, output / "model.safetensors",
              metadata={"format": "pt"})
    for file in source.glob("*token*"):
        shutil.copy(file, output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("candidates", nargs="+", type=lambda pair: pair.split("=", 1))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--dequantize", type=Path, metavar="OUT")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if arguments.dequantize:
        return dequantize(arguments.model, Path(arguments.candidates[0][1]), arguments.dequantize)
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids = tokenizer.encode(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    rows = torch.tensor(ids[: arguments.windows * arguments.window]).view(-1, arguments.window)
    models = {"BF16": load(arguments.model)}
    for name, directory in arguments.candidates:
        models[name] = candidate(Path(directory), models["BF16"])
    print(json.dumps(score(models, rows)))


if __name__ == "__main__":
    main()
