"""Greedy answers of vLLM on the CPU: vllm_run.py DIRECTORY TEXT CHARACTERS TOKENS; a line of JSON, one list of token ids for each of
four prompts of so many characters."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm import LLM, SamplingParams  # noqa: E402  The settings are read on import.

if __name__ == "__main__":
    directory, text = sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")
    characters, tokens = int(sys.argv[3]), int(sys.argv[4])
    prompts = [text[at : at + characters] for at in range(0, 4000, 1000)]
    engine = LLM(model=directory, dtype="bfloat16", max_model_len=512, enforce_eager=True)
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    print("\n" + json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
