"""Runs llama.cpp's convert_hf_to_gguf.py on a model whose tokenizer it has not met: convert.py SOURCE MODEL OUT.gguf TYPE

The converter knows a pre-tokenizer by a digest of what it does to a test string, and that of a freshly trained vocabulary
is in no list. The benchmark's own model splits as GPT-2 does; other models are left to the converter.
"""

import sys
from pathlib import Path

source, model, output, kind = sys.argv[1:]
sys.path[:0] = [source, str(Path(source) / "gguf-py")]
sys.argv = ["convert_hf_to_gguf.py", model, "--outtype", kind, "--outfile", output]

import convert_hf_to_gguf  # noqa: E402  The path is set above.
from conversion.base import TextModel  # noqa: E402

known = TextModel.get_vocab_base_pre


def pre_tokenizer(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"


TextModel.get_vocab_base_pre = pre_tokenizer
convert_hf_to_gguf.main()
