"""The tables for people, and the closing line for programs."""

import json

from . import baseline, contestants

VERDICTS = {True: "yes", False: "no", None: "-"}


def table(head, lines):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def number(value, digits=2):
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value):
    return "-" if value is None else f"{value:.0%}"


def ratios_table(outcome, keys_by_name):
    """A line for each key: what it compares, the ratio, what is asked for, the cell that decides or the reason."""
    lines = []
    for name, ratio in outcome["ratios"].items():
        key = keys_by_name[name.removesuffix("_1b")]
        required = outcome["required"][name]
        asked = f"<= {required['at_most']}" if "at_most" in required else f">= {required['at_least']}"
        note = outcome["reasons"].get(name) or deciding(outcome["cells"][name], ratio)
        lines.append([f"`{name}`", key.row, key.against, number(ratio), asked, VERDICTS[required["met"]], note])
    return table(["key", "row", "against", "ratio", "asked", "met", "the worst cell, or why there is no ratio"], lines)


def deciding(cells, ratio):
    cell = next(cell for cell in cells if cell["ratio"] == ratio)
    return f"{cell['ours']} {number(cell['ours_figure'])} : {cell['peer']} {number(cell['peer_figure'])} ({cell['cell']})"


def fractions_table(outcome):
    lines = []
    for name, share in outcome["fractions"].items():
        required = outcome["fractions_required"][name]
        asked, met = (f">= {required['at_least']:.0%}", required["met"]) if required else ("", None)
        lines.append([f"`{name}`", percent(share), asked, VERDICTS[met], outcome["fractions_reasons"].get(name, "")])
    return table(["share of the machine", "reached", "asked", "met", "why not"], lines)


def figures_table(figures):
    """A line for each contestant, in the order of a round."""
    levels = list(dict.fromkeys(n for each in figures.values() for n in each["streams"]))
    lengths = list(dict.fromkeys(n for each in figures.values() for n in each["prefill"]))
    head = ["server", f"tok/s at {' / '.join(levels)} streams", "decode", "ITL ms", "p99 ITL ms", "TTFT ms",
            f"prefill {' / '.join(lengths)} tok/s", "start s", "MiB", "of bandwidth", "of peak", "others' cores"]
    lines = []
    for name, each in figures.items():
        of_all = lambda field, digits=1: " / ".join(number(each["streams"].get(n, {}).get(field), digits) for n in levels)
        shares = each.get("of_machine") or {}
        first = each["streams"].get("1", {})
        lines.append([
            contestants.BY_NAME[name].title, of_all("output_tok_s"), number(first.get("decode_tok_s"), 1), of_all("itl_ms"),
            of_all("itl_p99_ms"), of_all("ttft_ms", 0), " / ".join(number(each["prefill"].get(n), 0) for n in lengths),
            number(each["start_s"]), number(each["memory_mib"], 0), percent(shares.get("decode")),
            " / ".join(percent(shares.get("prefill", {}).get(n)) for n in lengths), number(each["others_cores"])])
    return table(head, lines)


def markdown(outcome, keys_by_name):
    """The whole report."""
    parts = []
    for model in outcome["models"].values():
        parts.append(f"## {model['title']}")
        if machine := model["machine"]:
            parts.append(f"The machine in the same minutes: {machine['read_bytes_s'] / 1e9:.1f} GB/s read, "
                         f"{machine['int8_operations_s'] / 1e12:.2f} TOP/s INT8, "
                         f"{machine['bf16_operations_s'] / 1e12:.2f} TFLOP/s BF16.")
        if model["figures"]:
            parts.append(figures_table(model["figures"]))
        if model["missing"]:
            parts.append("\n".join(
                f"- not measured: {contestants.BY_NAME[name].title}: {why}" for name, why in model["missing"].items()))
    if outcome["ratios"]:
        parts += ["## Ratios, ours to the peer's", ratios_table(outcome, keys_by_name)]
    if outcome["fractions"]:
        parts.append(fractions_table(outcome))
    if "reference" in outcome:
        lines = [[f"`{key}`", number(value)] for key, value in outcome["reference"]["ratios"].items()]
        parts += [f"## Ours to {outcome['reference']['peer']}; above 1 is better", table(["key", "ratio"], lines)]
    if outcome["quick"]:
        parts.append("A quick run: it shows that everything works, and its figures are no result.")
    if not outcome["quiet"]:
        parts.append(f"Other programs used up to {outcome['others_cores_most']} cores. A server whose threads wait for each other by "
                     "spinning loses far more than that share: compare only when the machine is quiet.")
    return "\n\n".join(parts)


def closing(outcome):
    """One line with all but the single rounds, which the file has."""
    models = {name: {key: value for key, value in model.items() if key != "rounds"} for name, model in outcome["models"].items()}
    return "peers: " + json.dumps(outcome | {"models": models})


def reference(outcome, peer):
    """What `make bench-compare` reads: ours to the reference peer."""
    figures = outcome["models"]["smollm2"]["figures"]
    return {"peer": peer, "ratios": baseline.ratios(figures, contestants.ours(), peer)}
