"""The engines and formats that are measured."""

import dataclasses

OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One engine with one format of weights. `bits` are those of a weight of the linear layers."""

    name: str
    family: str
    title: str
    bits: int
    # What its products are made of, which is the peak that its prefill is held against.
    product: str


INT8, BF16 = "int8_operations_s", "bf16_operations_s"

# In the order of a round: each of ours stands beside those that it is compared with.
ALL = (
    Contestant("llama-q4_0", "llama", "llama.cpp Q4_0", 4, INT8),
    Contestant("ours-int4", OURS, "ours INT4 g32", 4, INT8),
    Contestant("openvino-q4_1", "openvino", "OpenVINO GenAI Q4_1", 4, INT8),
    Contestant("llama-q4_1", "llama", "llama.cpp Q4_1", 4, INT8),
    Contestant("llama-q8_0", "llama", "llama.cpp Q8_0", 8, INT8),
    Contestant("ours-int8", OURS, "ours INT8", 8, INT8),
    Contestant("vllm-w8a8", "vllm", "vLLM W8A8", 8, INT8),
    # Eight bits in memory, multiplied as BF16.
    Contestant("ours-fp8", OURS, "ours FP8", 8, BF16),
    Contestant("vllm-bf16", "vllm", "vLLM BF16", 16, BF16),
    Contestant("ours-bf16", OURS, "ours BF16", 16, BF16),
    Contestant("llama-bf16", "llama", "llama.cpp BF16", 16, BF16),
)
BY_NAME = {contestant.name: contestant for contestant in ALL}
FAMILIES = tuple(dict.fromkeys(contestant.family for contestant in ALL))


def ours(*bits):
    """Names of our profiles of these widths; of all without."""
    return tuple(c.name for c in ALL if c.family == OURS and (not bits or c.bits in bits))


def peers(*bits):
    """Names of the peers of these widths; of all without."""
    return tuple(c.name for c in ALL if c.family != OURS and (not bits or c.bits in bits))


def named(name):
    """The names that a family or a contestant's own name stands for; none for what is neither."""
    return tuple(c.name for c in ALL if name in (c.name, c.family))
