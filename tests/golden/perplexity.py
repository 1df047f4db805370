#!/usr/bin/env python3
"""Prints the golden perplexities of worker/engine/tests/model/quality.rs: transformers in BF16, without a BOS.

    perplexity.py ~/.cache/modelprofile/models/SmolLM2-135M-Instruct-BF16 ../shared/text/wikitext-2-valid.txt --windows 10 50

The first 100,000 characters are cut into windows of 512 tokens; tokens 1..511 of each are scored. `make test-interchange` makes
the checkpoint and installs the packages."""

import argparse
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CHARACTERS = 100_000
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, nargs="+", default=[10, 50], help="after so many the perplexity is printed")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")[:CHARACTERS]
    tokens = AutoTokenizer.from_pretrained(arguments.model)(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    nll = 0.0
    for index in range(max(arguments.windows)):
        window = tokens[index * WINDOW : (index + 1) * WINDOW]
        if len(window) < WINDOW:
            raise SystemExit(f"error: the text has {index} windows; ask for fewer")
        with torch.inference_mode():
            logits = model(window[None]).logits[0, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        if index + 1 in arguments.windows:
            print(f"{index + 1} windows: {math.exp(nll / ((index + 1) * (WINDOW - 1))):.4f}", flush=True)


if __name__ == "__main__":
    main()
