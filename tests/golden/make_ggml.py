#!/usr/bin/env python3
"""Makes worker/engine/tests/data/ggml.json: random blocks of every ggml format and their values by the `gguf` package.

    python3 -m venv .venv && .venv/bin/pip install gguf
    .venv/bin/python tests/golden/make_ggml.py worker/engine/tests/data/ggml.json

Block bytes are random but for the FP16 scales, which are kept finite. One row of 512 elements per format.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, dequantize

# Byte offsets of the FP16 numbers in a block.
SCALES = {
    Type.Q8_0: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
COLUMNS = 512


def main():
    random = np.random.default_rng(5)
    cases = []
    for kind, scales in SCALES.items():
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (COLUMNS // elements, size), dtype=np.uint8)
        for at in scales:
            values = random.normal(0, 0.05, len(blocks)).astype("<f2")
            blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
        row = blocks.reshape(1, -1)
        values = dequantize(row, kind).reshape(-1)
        cases.append({"dtype": kind.name, "bytes": row.tobytes().hex(), "values": [float(v) for v in values]})
    Path(sys.argv[1]).write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
