"""What of the machine a figure is: of its read bandwidth, of its peak of the kind of product that is computed.

A step of one stream reads every weight once; a token of a prompt costs two operations a weight of the linear layers.
Attention and activations are not counted, so that a share is never flattered.
"""

import dataclasses

from . import rows

BANDWIDTH = "read_bytes_s"


@dataclasses.dataclass(frozen=True)
class Share:
    """One share that the large model must reach: of the paths, the worst."""

    name: str
    contestant: str
    of: str
    paths: tuple
    required: float


PREFILL = tuple(("prefill", str(length)) for length in rows.PREFILLS)
REQUIRED = (
    Share("decode_int4_of_bandwidth", "ours-int4", "read bandwidth", (("decode",),), 0.80),
    Share("decode_fp8_of_bandwidth", "ours-fp8", "read bandwidth", (("decode",),), 0.80),
    Share("prefill_int8_of_peak", "ours-int8", "VNNI peak", PREFILL, 0.65),
    Share("prefill_int4_of_peak", "ours-int4", "VNNI peak", PREFILL, 0.65),
    Share("prefill_fp8_of_peak", "ours-fp8", "BF16 peak", PREFILL, 0.80),
    Share("prefill_bf16_of_peak", "ours-bf16", "BF16 peak", PREFILL, 0.80),
)


def linear_parameters(config):
    """Weights of the linear layers of a Llama, by its config.json."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    attention = config["hidden_size"] * head * (2 * heads + 2 * kv_heads)
    return config["num_hidden_layers"] * (attention + 3 * config["hidden_size"] * config["intermediate_size"])


def of_machine(figures, machine, weight_bytes, parameters, product):
    """Shares of one round: {"decode": of the bandwidth, "prefill": {length: of the peak}}; without a probe, nothing."""
    if not machine:
        return {}
    shares = {}
    if (decode := rows.value(figures, rows.DECODE)) and weight_bytes:
        shares["decode"] = round(decode * weight_bytes / machine[BANDWIDTH], 4)
    peak = machine.get(product)
    if peak:
        shares["prefill"] = {length: round(2 * parameters * speed / peak, 4) for length, speed in figures["prefill"].items()}
    return shares


def required(model, figures, missing, wanted):
    """{"fractions": {name: share or none}, "fractions_required": {...}, "fractions_reasons": {...}} of one model, for the
    contestants that are wanted."""
    result = {"fractions": {}, "fractions_required": {}, "fractions_reasons": {}}
    for share in (share for share in REQUIRED if share.contestant in wanted):
        name = share.name + model.suffix
        found = [rows.value(figures.get(share.contestant, {}), ("of_machine", *path)) for path in share.paths]
        worst = None if None in found else min(found)
        result["fractions"][name] = worst
        # The small model is too small to ask for it: overhead decides there.
        result["fractions_required"][name] = None if model.small else {
            "at_least": share.required, "met": None if worst is None else worst >= share.required}
        if worst is None:
            result["fractions_reasons"][name] = f"{share.contestant}: {missing.get(share.contestant, 'not measured')}"
    return result
