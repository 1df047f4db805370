"""`make bench-peers`, started by tests/scripts/bench-peers.sh."""

import json
import os
import signal
import sys

from . import options, report, rows

ARGUMENTS = options.parser().parse_args()
PLAN = options.plan(ARGUMENTS)


def check():
    """What can be refused before anything is started."""
    if not ARGUMENTS.text.is_file():
        options.refuse(f"{ARGUMENTS.text} is not there; name a text of at least 300 kB with --text FILE")
    available = len(os.sched_getaffinity(0))
    if available < ARGUMENTS.threads:
        options.refuse(f"{ARGUMENTS.threads} cores asked for, {available} there; use --threads {available}")


def main():
    if ARGUMENTS.families:
        print(*PLAN.families)
        return
    check()
    # It is for this program's modules; the engines have Python of their own.
    os.environ.pop("PYTHONPATH", None)
    # As Ctrl-C does: the server that runs is in a session of its own, and is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Only now: the load client needs a package that printing the plan does not.
    from . import run

    this = run.Run(ARGUMENTS, PLAN)
    try:
        this.everything(dry=ARGUMENTS.dry_run)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command with --resume goes on from here")
    if ARGUMENTS.dry_run:
        return
    outcome = this.outcome()
    if ARGUMENTS.reference:
        outcome["reference"] = report.reference(outcome, options.REFERENCE)
    out = ARGUMENTS.out or options.ROOT / "target" / ("bench/bench.json" if ARGUMENTS.reference else "bench-peers/peers.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    print(report.markdown(outcome, rows.BY_NAME))
    print(f"\n==> everything is in {out}", file=sys.stderr, flush=True)
    print(report.closing(outcome))


if __name__ == "__main__":
    main()
