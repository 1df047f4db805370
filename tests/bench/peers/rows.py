"""What `make bench-peers` is held against: the keys, what each compares, and its ratio out of the figures.

A ratio is ours over the peer's, so that for latency, memory and time to start a small one is good. A key of several cells
(two prompt lengths, two formats) has the ratio of the worst; it has none while a contestant that it names was not measured,
since the best of the others might not be the best. The cells say what the others gave all the same.
"""

import dataclasses
import statistics

from . import contestants

DECODE = ("streams", "1", "decode_tok_s")
P99 = ("streams", "16", "itl_p99_ms")
PREFILLS = (512, 2048)
# Asked for on the large model, where the peers reach the memory's bandwidth.
LARGE_DECODE, LARGE_ELSEWHERE = 0.95, 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One comparison: the best of `ours` with the best of `peers`, by the figure that lies at `path`."""

    name: str
    ours: tuple
    peers: tuple
    path: tuple


@dataclasses.dataclass(frozen=True)
class Key:
    """`required` is what the small model's ratio must reach; `lower`: must not exceed."""

    name: str
    row: str
    against: str
    required: float
    cells: tuple
    lower: bool = False
    # Levels of streams that must have run for the figure to mean what it says, beside those of the cells.
    load: tuple = ()

    def required_of(self, model):
        if model.small:
            return self.required
        return LARGE_DECODE if self.cells[0].path == DECODE else LARGE_ELSEWHERE

    def meets(self, ratio, model):
        return ratio <= self.required_of(model) if self.lower else ratio >= self.required_of(model)


def output(streams):
    return ("streams", str(streams), "output_tok_s")


def prefills(formats, peers):
    return tuple(Cell(f"{ours} prefill {length}", (ours,), peers, ("prefill", str(length)))
                 for ours in formats for length in PREFILLS)


def batches(ours, peers):
    return tuple(Cell(f"{ours} at {n} streams", (ours,), peers, output(n)) for n in (8, 16))


def widest(path, peers_of):
    """A cell for each of our profiles, against the peers whose weights have as many bits."""
    return tuple(Cell(name, (name,), peers_of(contestants.BY_NAME[name].bits), path) for name in contestants.ours())


def eight_and_four(path):
    """Our best 8-bit and our best 4-bit profile, each against the best peer in any format."""
    return tuple(Cell(f"best {bits}-bit profile", contestants.ours(bits), contestants.peers(), path) for bits in (8, 4))


def llama_of(bits):
    return tuple(name for name in contestants.peers(bits) if contestants.BY_NAME[name].family == "llama")


FOUR = contestants.peers(4)
FOUR_TEXT = "best 4-bit peer"
KEYS = (
    Key("decode_int4", "one stream decode, INT4 g32", FOUR_TEXT, 1.5,
        (Cell("ours-int4", ("ours-int4",), FOUR, DECODE),)),
    Key("decode_fp8", "one stream decode, FP8", "llama.cpp Q8_0", 1.3,
        (Cell("ours-fp8", ("ours-fp8",), ("llama-q8_0",), DECODE),)),
    Key("decode_bf16", "one stream decode, BF16", "best of llama.cpp BF16, vLLM BF16", 1.2,
        (Cell("ours-bf16", ("ours-bf16",), contestants.peers(16), DECODE),)),
    Key("prefill_fp8", "prefill 512 and 2,048, FP8 and BF16", "vLLM BF16", 1.05,
        prefills(("ours-fp8", "ours-bf16"), ("vllm-bf16",))),
    Key("prefill_int8", "prefill 512 and 2,048, INT8", "vLLM W8A8", 1.2, prefills(("ours-int8",), ("vllm-w8a8",))),
    Key("prefill_int4", "prefill 512 and 2,048, INT4", FOUR_TEXT, 1.3, prefills(("ours-int4",), FOUR)),
    Key("batch16_fp8", "8 and 16 streams, FP8", "vLLM BF16", 1.2, batches("ours-fp8", ("vllm-bf16",))),
    Key("batch16_int8", "8 and 16 streams, INT8", "vLLM W8A8", 1.3, batches("ours-int8", ("vllm-w8a8",))),
    Key("batch16_int4", "8 and 16 streams, INT4", FOUR_TEXT, 1.5, batches("ours-int4", FOUR)),
    Key("streams4_best", "4 streams, best 8-bit and best 4-bit profile", "best peer in any format", 1.2, eight_and_four(output(4))),
    Key("streams8_best", "8 streams, best 8-bit and best 4-bit profile", "best peer in any format", 1.2, eight_and_four(output(8))),
    Key("p99_itl", "p99 inter-token latency at 16 streams, best 8-bit and best 4-bit profile", "best peer in any format", 0.8,
        eight_and_four(P99), lower=True),
    Key("start", "process start to first answer, artifact cached", "llama.cpp with as many bits", 1.0,
        widest(("start_s",), llama_of), lower=True),
    Key("memory", "resident memory at equal KV capacity", "the leaner peer with as many bits", 1.0,
        widest(("memory_mib",), contestants.peers), lower=True, load=(16,)),
)
BY_NAME = {key.name: key for key in KEYS}


def needs(keys):
    """{contestant: (levels of streams, prompt lengths)} that the cells of these keys are computed from."""
    found = {}
    for key in keys:
        for cell in key.cells:
            for name in cell.ours + cell.peers:
                levels, lengths = found.setdefault(name, (set(key.load), set()))
                levels.update(key.load)
                if cell.path[0] == "streams":
                    levels.add(int(cell.path[1]))
                elif cell.path[0] == "prefill":
                    lengths.add(int(cell.path[1]))
    return {name: (tuple(sorted(levels)), tuple(sorted(lengths))) for name, (levels, lengths) in found.items()}


def value(figures, path):
    """The figure at the path; none where a part of it was not measured."""
    for part in path:
        figures = figures.get(part) if isinstance(figures, dict) else None
    return figures


def best(names, path, lower, figures):
    """(name, figure) of the best that has one."""
    found = [(name, value(figures.get(name, {}), path)) for name in names]
    found = [(name, figure) for name, figure in found if figure]
    return (min if lower else max)(found, key=lambda pair: pair[1], default=(None, None))


def compare(cell, lower, figures, missing):
    """The cell as it goes into the file: who is compared, the ratio, and who of those that count is missing and why."""
    ours, our_figure = best(cell.ours, cell.path, lower, figures)
    peer, peer_figure = best(cell.peers, cell.path, lower, figures)
    absent = [name for name in cell.ours + cell.peers if not value(figures.get(name, {}), cell.path)]
    why = {name: missing.get(name, "not measured: " + " ".join(cell.path)) for name in absent}
    return {
        "cell": cell.name, "ours": ours, "ours_figure": our_figure, "peer": peer, "peer_figure": peer_figure,
        "ratio": round(our_figure / peer_figure, 3) if ours and peer else None, **({"missing": why} if why else {}),
    }


def sentence(cells):
    """Who is missing in some cell, those with the same reason together; none where nobody is."""
    by_reason = {}
    for name, why in {name: why for cell in cells for name, why in cell.get("missing", {}).items()}.items():
        by_reason.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())


def ratio_of(key, figures, missing):
    """(ratio or none, its cells, the reason where there is none)."""
    cells = [compare(cell, key.lower, figures, missing) for cell in key.cells]
    if reason := sentence(cells):
        return None, cells, reason
    return (max if key.lower else min)(cell["ratio"] for cell in cells), cells, None


def ratios(keys, model, figures, missing):
    """{"ratios": ..., "cells": ..., "reasons": ..., "required": ...} of one model, under the keys with its suffix.

    `figures` maps contestants to medians; `missing` says of those that have none why."""
    result = {"ratios": {}, "cells": {}, "reasons": {}, "required": {}}
    for key in keys:
        name = key.name + model.suffix
        ratio, cells, reason = ratio_of(key, figures, missing)
        result["ratios"][name], result["cells"][name] = ratio, cells
        result["required"][name] = {
            "at_most" if key.lower else "at_least": key.required_of(model),
            "met": None if ratio is None else key.meets(ratio, model),
        }
        if reason:
            result["reasons"][name] = reason
    return result


def medians(rounds):
    """The same structure with the median of each number; what is no number is the last round's. A part that some rounds
    lack is the median of those that have it."""
    if isinstance(rounds[0], dict):
        keys = dict.fromkeys(key for each in rounds for key in each)
        return {key: medians([each[key] for each in rounds if key in each]) for key in keys}
    if any(not isinstance(each, (int, float)) or isinstance(each, bool) for each in rounds):
        return rounds[-1]
    return round(statistics.median(rounds), 4)
