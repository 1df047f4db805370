"""Did something get slower? Holds the ratios of `make bench` against a committed baseline.

    make bench-compare [UPDATE=1]        python3 -m peers.baseline BENCH.json BASELINE.json [--update]

Ratios, since the machine cancels out of them: ours to a reference peer's in the same run, turned so that above 1 is better.
The baseline has a set for each instruction set, whose kernels have nothing to do with each other.
"""

import argparse
import json
import sys
from pathlib import Path

# (name in the key, path of the figure, whether a low one is good)
CELLS = (
    ("decode", ("streams", "1", "decode_tok_s"), False),
    ("streams_4", ("streams", "4", "output_tok_s"), False),
    ("streams_8", ("streams", "8", "output_tok_s"), False),
    ("streams_16", ("streams", "16", "output_tok_s"), False),
    ("itl_p99_16", ("streams", "16", "itl_p99_ms"), True),
    ("prefill_512", ("prefill", "512"), False),
    ("prefill_2048", ("prefill", "2048"), False),
    ("start", ("start_s",), True),
    ("memory", ("memory_mib",), True),
)


def figure(figures, path):
    for part in path:
        figures = figures.get(part) if isinstance(figures, dict) else None
    return figures


def ratios(figures, ours, peer):
    """{"int4.decode": ratio, ...}: what was measured on both sides."""
    found = {}
    for name in ours:
        for cell, path, lower in CELLS:
            own, other = figure(figures.get(name, {}), path), figure(figures.get(peer, {}), path)
            if own and other:
                found[f"{name.removeprefix('ours-')}.{cell}"] = round(other / own if lower else own / other, 3)
    return found


def tolerance(baseline, key):
    """The part of a ratio that may be lost: the cell's own, else the one of all."""
    return baseline["tolerances"].get(key.split(".", 1)[1], baseline["tolerance"])


def compare(baseline, kept, now):
    """[(key, kept ratio, ratio now or none, tolerance, verdict)], verdict: ok, better, fell, missing, new."""
    lines = []
    for key in dict.fromkeys([*kept, *now]):
        allowed = tolerance(baseline, key)
        if key not in kept:
            verdict = "new"
        elif key not in now:
            verdict = "missing"
        elif now[key] < kept[key] * (1 - allowed):
            verdict = "fell"
        else:
            verdict = "better" if now[key] > kept[key] * (1 + allowed) else "ok"
        lines.append((key, kept.get(key), now.get(key), allowed, verdict))
    return lines


def table(lines):
    head = f"{'key':<20} {'baseline':>9} {'now':>9} {'change':>8} {'allowed':>8}  verdict"
    show = lambda value: "-" if value is None else f"{value:.3f}"
    rows = [
        f"{key:<20} {show(kept):>9} {show(now):>9} {f'{now / kept - 1:+.1%}' if kept and now else '-':>8} {-allowed:>8.0%}  {verdict}"
        for key, kept, now, allowed, verdict in lines
    ]
    return "\n".join([head, *rows])


def update(baseline, bench):
    """The baseline with this run's ratios for its instruction set."""
    entry = {"processor": bench["processor"], "rounds": bench["rounds"], "ratios": bench["reference"]["ratios"]}
    return baseline | {"baselines": baseline["baselines"] | {bench["instruction_set"]: entry}}


def refusal(baseline, bench):
    """Why this run says nothing against this baseline, or none."""
    if "reference" not in bench:
        return "it is no file of `make bench`; run that first"
    if bench["reference"]["peer"] != baseline["reference"]:
        return (f"it is measured against {bench['reference']['peer']}, the baseline against {baseline['reference']}; "
                "run `make bench` again")
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--update", action="store_true", help="write this run's ratios as those to compare with")
    arguments = parser.parse_args()
    if not arguments.bench.is_file():
        sys.exit(f"error: {arguments.bench} is not there; `make bench` writes it")
    bench = json.loads(arguments.bench.read_text(encoding="utf-8"))
    baseline = json.loads(arguments.baseline.read_text(encoding="utf-8"))
    if reason := refusal(baseline, bench):
        sys.exit(f"error: {arguments.bench}: {reason}")
    isa = bench["instruction_set"]
    if not bench["quiet"]:
        print(f"note: other programs used up to {bench['others_cores_most']} cores while it was measured", file=sys.stderr)
    if arguments.update:
        if bench["models"]["smollm2"]["missing"]:
            sys.exit("error: not every contestant was measured, so that a baseline of it would have gaps; run `make bench` again")
        arguments.baseline.write_text(json.dumps(update(baseline, bench), indent=2) + "\n", encoding="utf-8")
        print(f"{arguments.baseline} has {len(bench['reference']['ratios'])} ratios for {isa} now; look at the difference, commit it")
        return
    kept = baseline["baselines"].get(isa)
    if kept is None:
        sys.exit(f"error: {arguments.baseline} has no ratios for {isa}; on a quiet machine, write them: "
                 "make bench && make bench-compare UPDATE=1")
    lines = compare(baseline, kept["ratios"], bench["reference"]["ratios"])
    print(table(lines))
    if lost := [line[0] for line in lines if line[4] in ("fell", "missing")]:
        sys.exit(f"error: {len(lost)} of {len(kept['ratios'])} ratios fell or are missing: {', '.join(lost)}. "
                 "If that is meant, write them: make bench-compare UPDATE=1")
    print(f"all {len(kept['ratios'])} ratios for {isa} hold")


if __name__ == "__main__":
    main()
