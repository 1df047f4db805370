#!/usr/bin/env python3
"""Holds the report of an emulated `gpu-check.sh` against what it must have: check_report.py JSON MARKDOWN."""

import json
import sys


def main(path, markdown):
    report = json.load(open(path))
    text = open(markdown).read()
    assert report["emulated"] is True, "an emulated run must say so"
    assert "No time and no rate below is a GPU's" in text, "the Markdown must say so, too"
    assert report["tests"]["failed"] == 0 and report["tests"]["passed"] > 0, report["tests"]
    assert not report["leftOut"], report["leftOut"]
    assert report["notes"] == [], report["notes"]
    formats = ["FP8", "INT4", "INT8", "BF16"]
    for section in ("steps", "kernels"):
        assert {row["format"] for row in report[section]} == set(formats), section
        assert all(row["seconds"] > 0 and row["modelledSeconds"] > 0 for row in report[section]), section
    # Every kernel that the device was given is one that the plan has.
    unknown = [row["kernel"] for row in report["kernels"] if row["part"] == "not planned"]
    assert not unknown, f"the plan lacks {unknown}"
    assert {(s["from"], s["to"]) for s in report["switches"]} >= {("FP8", "INT4"), ("INT4", "FP8")}, report["switches"]
    assert all(s["bytes"] > 0 for s in report["switches"])
    assert all(row["ownSeconds"] > 0 and row["unpackedSeconds"] > 0 for row in report["crossover"]) and report["crossover"]
    assert all(report["bandwidth"][key] > 0 for key in ("device", "fromHost", "toHost"))
    assert all(origin in ("Shipped", "Cached", "Compiled") for _, origin in report["kernelOrigins"])
    for row in report["kernels"]:
        assert f"| {row['kernel']} |" in text, row
    print(f"{len(report['kernels'])} kernels, {len(report['steps'])} steps, {len(report['switches'])} switches: the report is whole")


if __name__ == "__main__":
    main(*sys.argv[1:])
