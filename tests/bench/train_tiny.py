"""Trains the small Llama-shaped model that the quality benchmark quantizes: its weights lie on no quantization grid.

    train_tiny.py DIRECTORY [--minutes 26] [--tokens 4000000] [--threads 2] [--seed 7]

8 layers, width 512, 8 heads over 4 KV heads of 64, feed-forward 1536, untied embeddings of a byte-level BPE vocabulary of
4,096: 29 M weights, of which 25 M in layers whose rows divide into blocks of 256 and groups of 128. The layers' matrices are
trained with Muon (Jordan et al. 2024), which reaches AdamW's loss with a third of the tokens here, the rest with AdamW, and a
cosine schedule that ends with whichever budget ends first, in BF16 with FP32 master weights. The same seed and a token
budget that is reached give the same model on the same machine; one cut by the minutes does not. A model that is trained too
little hardly minds 4 bits, and then no method can be told from another: hence all this for speed.

DIRECTORY becomes a Hugging Face checkpoint (BF16) with the texts of corpus.py beside it: calibration.txt and heldout.txt.
It is written every few minutes, so that a run that is cut leaves a model, and `complete` marks the last one.
Needs the packages torch, transformers, tokenizers and safetensors; with a C++ compiler it is half as fast again.
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

# Before torch loads OpenMP: threads that wait sleep, for a machine that is shared with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy
import tokenizers
import torch
import transformers

import corpus

SHAPE = dict(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=0,
)
END = "<|endoftext|>"
BATCH_TOKENS = 2048
# Short sequences train faster; the last part of the run teaches the context that the benchmark scores.
SHORT, LONG, LONG_FROM = 256, 512, 0.8
MUON_RATE, ADAM_RATE, LAST_RATE, WARM_UP = 2e-2, 3e-3, 0.03, 0.03
SAVE_EVERY_S = 240
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [benchmark]
---
# A small model for measuring quantization

{tokens:,} tokens of public-domain and BSD-licensed English (State of the Union addresses, Moby Dick, Django's
documentation), trained on a CPU by tests/bench/train_tiny.py. It is too small to be of use for anything else.
"""


def train_tokenizer(texts):
    """Byte-level BPE with GPT-2's pre-tokenizer, which GGUF names `gpt-2`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer, texts):
    """One stream of ids, documents apart by the end-of-text token."""
    ids = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += encoding.ids + [0]
    return torch.tensor(numpy.array(ids, dtype=numpy.int64))


def windows(ids, seed):
    """Batches of BATCH_TOKENS consecutive tokens without end, each part of the text once before any comes twice."""
    shuffled = random.Random(seed)
    places = list(range(0, len(ids) - BATCH_TOKENS - 1, BATCH_TOKENS))
    while True:
        shuffled.shuffle(places)
        for place in places:
            yield ids[place : place + BATCH_TOKENS]


def rate(progress):
    """Part of the highest learning rate: a linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return progress / WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))
    return LAST_RATE + (1 - LAST_RATE) * cosine


def optimizers(model):
    """Muon for the matrices of the layers; AdamW for embedding, output layer and norms, which do not decay."""
    is_matrix = lambda name, p: p.ndim == 2 and ".layers." in name
    matrices = [p for name, p in model.named_parameters() if is_matrix(name, p)]
    others = [p for name, p in model.named_parameters() if not is_matrix(name, p)]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@torch.no_grad()
def perplexity(model, ids, length=512, count=64):
    """Over the second half of the first `count` windows, each started afresh."""
    rows = ids[: len(ids) // length * length].view(-1, length)[:count]
    loss, tokens = 0.0, 0
    for batch in rows.split(4):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch, use_cache=False).logits
        scores = logits[:, length // 2 - 1 : -1].float().flatten(0, 1)
        loss += torch.nn.functional.cross_entropy(scores, batch[:, length // 2 :].flatten(), reduction="sum").item()
        tokens += len(scores)
    return math.exp(loss / tokens)


def save(model, tokenizer, directory, texts, tokens):
    """Writes the checkpoint under another name and renames it: a directory that exists is whole."""
    part = directory.with_name(f"{directory.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    copy = transformers.LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.save_pretrained(part)
    tokenizer.save(str(part / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "add_bos_token": False,
        "model_max_length": SHAPE["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (part / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (part / "README.md").write_text(CARD.format(tokens=tokens))
    for name, documents in texts.items():
        (part / name).write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    part.rename(directory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--minutes", type=float, default=26)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    start = time.monotonic()

    training, calibration, heldout = corpus.split(arguments.directory.parent / "corpus")
    texts = {"calibration.txt": calibration, "heldout.txt": heldout}
    tokenizer = train_tokenizer(training)
    ids, heldout_ids = encode(tokenizer, training), encode(tokenizer, heldout)
    print(f"{sum(map(len, training)) / 1e6:.1f} MB of text, {len(ids) / 1e6:.2f} M tokens, prepared in "
          f"{time.monotonic() - start:.0f} s", flush=True)

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    forward = torch.compile(model, dynamic=False) if shutil.which("c++") else model
    both = optimizers(model)
    groups = [(group, group["lr"]) for one in both for group in one.param_groups]
    done, step, saved, average = 0, 0, time.monotonic(), None
    for batch in windows(ids, arguments.seed):
        minutes = (time.monotonic() - start) / 60
        progress = max(done / arguments.tokens, minutes / arguments.minutes)
        if progress >= 1:
            break
        for group, highest in groups:
            group["lr"] = highest * rate(progress)
        rows = batch.view(-1, SHORT if progress < LONG_FROM else LONG)
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in both:
            one.step()
            one.zero_grad(set_to_none=True)
        done, step = done + BATCH_TOKENS, step + 1
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}, {done / 1e6:.2f} M tokens, {minutes:.1f} min, loss {average:.3f}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(model, tokenizer, arguments.directory, texts, done)
            saved = time.monotonic()
    save(model, tokenizer, arguments.directory, texts, done)
    print(f"perplexity of the held-out text: {perplexity(model, heldout_ids):.2f}")
    summary = {"tokens": done, "steps": step, "minutes": round((time.monotonic() - start) / 60, 1), "seed": arguments.seed}
    (arguments.directory / "complete").write_text(json.dumps(summary) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
