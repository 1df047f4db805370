#!/usr/bin/env python3
"""Times torch's and vLLM's products on the GPU, for `make gpu-check`: the shapes of a Llama-3.1-8B layer.

Prints JSON: {"products": [{by, product, rows, n, k, seconds}], "versions": {...}, "reason": why there are none}.
Never fails for a missing package: what cannot be imported or called is left out, and said.
"""

import json
import sys

SHAPES = {"qkv": (6144, 4096), "attention output": (4096, 4096), "gate and up": (28672, 4096), "down": (4096, 14336)}
ROWS = [1, 16, 64, 256, 512, 2048]
# Enough weights of one shape that they do not all come from the L2 cache.
COPIES_BYTES = 256 << 20


def timed(torch, calls, rounds=10):
    """Seconds of one call, by the device's clock."""
    for call in calls:
        call()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        for call in calls:
            call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / rounds / len(calls)


def copies(n, k, size):
    return max(1, -(-COPIES_BYTES // (n * k * size)))


def bf16(torch, rows, n, k):
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies(n, k, 2))]
    return timed(torch, [lambda w=w: torch.nn.functional.linear(x, w) for w in weights])


def fp8_operands(torch, rows, n, k):
    fp8 = torch.float8_e4m3fn
    x = torch.randn(rows, k, device="cuda").to(fp8)
    weights = [torch.randn(n, k, device="cuda").to(fp8) for _ in range(copies(n, k, 1))]
    x_scales = torch.ones(rows, 1, device="cuda")
    w_scales = torch.ones(1, n, device="cuda")
    return x, weights, x_scales, w_scales


def fp8(torch, rows, n, k):
    x, weights, a, b = fp8_operands(torch, rows, n, k)
    multiply = lambda w: torch._scaled_mm(x, w.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16)
    return timed(torch, [lambda w=w: multiply(w) for w in weights])


def vllm_fp8(torch, rows, n, k):
    from vllm import _custom_ops as ops

    x, weights, a, b = fp8_operands(torch, rows, n, k)
    multiply = lambda w: ops.cutlass_scaled_mm(x, w.t(), a, b, torch.bfloat16)
    return timed(torch, [lambda w=w: multiply(w) for w in weights])


def main():
    try:
        import torch
    except ImportError as error:
        return {"products": [], "reason": f"torch cannot be imported here ({error})."}
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        return {"products": [], "versions": versions, "reason": f"torch {torch.__version__} sees no GPU."}
    measures = [("torch", "BF16 linear", bf16), ("torch", "FP8 _scaled_mm, scales of rows", fp8)]
    try:
        import vllm

        versions["vllm"] = vllm.__version__
        measures.append(("vllm", "FP8 cutlass_scaled_mm", vllm_fp8))
    except Exception as error:  # its import runs much code of its own
        versions["vllm"] = f"not importable ({type(error).__name__}: {error})"
    products, left_out = [], []
    for by, product, measure in measures:
        for part, (n, k) in SHAPES.items():
            for rows in ROWS:
                try:
                    seconds = measure(torch, rows, n, k)
                except Exception as error:  # a version that cannot do it says so in its own words
                    left_out.append(f"{by} {product}, {rows} rows of {part}: {str(error).splitlines()[0]}")
                    continue
                products.append({"by": by, "product": f"{product}, {part}", "rows": rows, "n": n, "k": k, "seconds": seconds})
    return {"products": products, "versions": versions, "leftOut": left_out}


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=1)
    print()
