"""Scores plain weights of checkpoints on one text: perplexity and mean KL divergence from the first.

    score.py MODEL --text FILE --windows 64 [--window 512] NAME=DIRECTORY...

MODEL is the checkpoint in BF16; each DIRECTORY holds a plain checkpoint or one that `compressed-tensors` reads, which is
dequantized. Everything is computed in FP32, so that only the weights differ. Embeddings and output layer are MODEL's in
every candidate: tools differ in what they leave in 16 bit, and the linear layers are what is compared.
Both measures are taken over the second half of each window, as llama.cpp does. Prints JSON.
"""

import argparse
import json
import math
from pathlib import Path

import tokenizers
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


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
    sums = {name: {"nll": 0.0, "kld": 0.0} for name in models}
    for row in rows:
        reference, next_tokens = None, row[len(row) // 2 :, None]
        for name, model in models.items():
            found = log_probabilities(model, row)
            reference = found if reference is None else reference
            sums[name]["nll"] -= found.gather(1, next_tokens).sum().item()
            sums[name]["kld"] += (reference.exp() * (reference - found)).sum().item()
    count = len(rows) * (rows.shape[1] // 2)
    return {name: {"perplexity": math.exp(s["nll"] / count), "kld": s["kld"] / count} for name, s in sums.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("candidates", nargs="+", type=lambda pair: pair.split("=", 1))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    ids = tokenizer.encode(arguments.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    rows = torch.tensor(ids[: arguments.windows * arguments.window]).view(-1, arguments.window)
    models = {"BF16": load(arguments.model)}
    for name, directory in arguments.candidates:
        models[name] = load(Path(directory))
        models[name].set_input_embeddings(models["BF16"].get_input_embeddings())
        models[name].set_output_embeddings(models["BF16"].get_output_embeddings())
    print(json.dumps(score(models, rows)))


if __name__ == "__main__":
    main()
