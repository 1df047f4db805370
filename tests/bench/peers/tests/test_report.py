"""The report, the closing line and the baseline."""

import json
import unittest

from peers import baseline, models, report, rows

from .test_rows import figures

REASON = {"vllm-w8a8": "failed in round 1: it ended with status 1"}


def outcome():
    some = {name: each | {"others_cores": 0.02} for name, each in figures().items() if name not in REASON}
    return {
        **rows.ratios(rows.KEYS, models.SMOLLM2, some, REASON), "quick": False, "quiet": True,
        "fractions": {"decode_int4_of_bandwidth": None}, "fractions_required": {"decode_int4_of_bandwidth": None},
        "fractions_reasons": {"decode_int4_of_bandwidth": "ours-int4: not measured"},
        "models": {"smollm2": {"title": "SmolLM2-135M", "figures": some, "missing": REASON, "machine": None, "rounds": {"x": []}}},
    }


class Reports(unittest.TestCase):
    def test_a_key_without_a_ratio_says_why(self):
        lines = report.markdown(outcome(), rows.BY_NAME).splitlines()
        line = next(line for line in lines if line.startswith("| `batch16_int8`"))
        self.assertIn("| - | >= 1.3 | - | vllm-w8a8: failed in round 1: it ended with status 1 |", line)

    def test_a_key_with_a_ratio_names_the_cell_that_decides(self):
        line = next(line for line in report.markdown(outcome(), rows.BY_NAME).splitlines() if line.startswith("| `decode_fp8`"))
        self.assertTrue(line.endswith("| 1.00 | >= 1.3 | no | ours-fp8 100.00 : llama-q8_0 100.00 (ours-fp8) |"), line)

    def test_every_line_of_a_table_has_as_many_cells(self):
        for block in report.markdown(outcome(), rows.BY_NAME).split("\n\n"):
            if block.startswith("|"):
                self.assertEqual(len({line.count("|") for line in block.splitlines()}), 1, block)

    def test_the_closing_line_is_json_with_the_ratios_and_without_the_rounds(self):
        word, line = report.closing(outcome()).split(" ", 1)
        value = json.loads(line)
        self.assertEqual((word, value["ratios"]["decode_int4"], value["ratios"]["batch16_int8"]), ("peers:", 1.0, None))
        self.assertNotIn("rounds", value["models"]["smollm2"])


class Baselines(unittest.TestCase):
    BASELINE = {"reference": "llama-q8_0", "tolerance": 0.1, "tolerances": {"start": 0.5}, "baselines": {}}

    def verdicts(self, kept, now):
        return {key: verdict for key, _, _, _, verdict in baseline.compare(self.BASELINE, kept, now)}

    def test_ratios_are_turned_so_that_more_is_better(self):
        some = figures(ours_int4={rows.DECODE: 200, ("start_s",): 50})
        found = baseline.ratios(some, ["ours-int4"], "llama-q8_0")
        self.assertEqual((found["int4.decode"], found["int4.start"], found["int4.memory"]), (2.0, 2.0, 1.0))
        self.assertEqual(len(found), len(baseline.CELLS))

    def test_what_was_not_measured_has_no_ratio(self):
        self.assertEqual(baseline.ratios(figures(), ["ours-int4"], "no-such-peer"), {})

    def test_a_ratio_falls_by_more_than_is_allowed(self):
        kept = {"int4.decode": 2.0, "fp8.decode": 2.0, "int4.start": 1.0, "bf16.decode": 1.0, "int8.decode": 1.0}
        now = {"int4.decode": 1.79, "fp8.decode": 1.81, "int4.start": 0.6, "bf16.decode": 1.2, "fp8.start": 1.0}
        self.assertEqual(self.verdicts(kept, now), {
            "int4.decode": "fell", "fp8.decode": "ok", "int4.start": "ok", "bf16.decode": "better", "int8.decode": "missing", "fp8.start": "new"})

    def test_an_update_touches_its_instruction_set_alone(self):
        bench = {"processor": "P", "rounds": 3, "instruction_set": "avx2", "reference": {"ratios": {"int4.decode": 2.0}}}
        before = self.BASELINE | {"baselines": {"avx512": {"ratios": {"int4.decode": 3.0}}}}
        after = baseline.update(before, bench)
        self.assertEqual(after["baselines"]["avx512"], {"ratios": {"int4.decode": 3.0}})
        self.assertEqual(after["baselines"]["avx2"], {"processor": "P", "rounds": 3, "ratios": {"int4.decode": 2.0}})
        self.assertEqual(after["tolerances"], {"start": 0.5})

    def test_a_run_against_another_peer_says_nothing(self):
        self.assertIsNone(baseline.refusal(self.BASELINE, {"reference": {"peer": "llama-q8_0"}}))
        self.assertIn("run `make bench` again", baseline.refusal(self.BASELINE, {"reference": {"peer": "llama-q4_0"}}))
        self.assertIn("run that first", baseline.refusal(self.BASELINE, {}))

    def test_the_table_has_a_line_for_each_key(self):
        lines = baseline.compare(self.BASELINE, {"int4.decode": 2.0}, {"int4.start": 1.0})
        self.assertEqual([line.split()[0] for line in baseline.table(lines).splitlines()], ["key", "int4.decode", "int4.start"])
