"""Ratios out of figures."""

import unittest

from peers import contestants, machine_share, models, rows

SMALL, LARGE = models.SMOLLM2, models.LLAMA_1B
FP8_CELLS = ["ours-fp8 prefill 512", "ours-fp8 prefill 2048", "ours-bf16 prefill 512", "ours-bf16 prefill 2048"]


def figures(**changes):
    """Everybody reaches 100 everywhere; `changes` are by contestant (the first underscore is a dash), as paths and values."""
    level = lambda: {"output_tok_s": 100, "decode_tok_s": 100, "itl_p99_ms": 100}
    all_of = {
        name: {"streams": {str(n): level() for n in (1, 4, 8, 16)}, "prefill": {"512": 100, "2048": 100}, "start_s": 100, "memory_mib": 100}
        for name in contestants.BY_NAME
    }
    for name, change in changes.items():
        for path, value in change.items():
            at = all_of[name.replace("_", "-", 1)]
            for part in path[:-1]:
                at = at[part]
            at[path[-1]] = value
    return all_of


def ratio(key, figures, missing=None):
    return rows.ratio_of(rows.BY_NAME[key], figures, missing or {})


class Ratios(unittest.TestCase):
    def test_everybody_alike_gives_one_everywhere(self):
        result = rows.ratios(rows.KEYS, SMALL, figures(), {})
        self.assertEqual(result["ratios"], {key.name: 1.0 for key in rows.KEYS})
        self.assertEqual(result["reasons"], {})

    def test_the_keys_of_the_issue_are_there_with_their_limits(self):
        limits = {key.name: (key.lower, key.required) for key in rows.KEYS}
        self.assertEqual(limits, {
            "decode_int4": (False, 1.5), "decode_fp8": (False, 1.3), "decode_bf16": (False, 1.2), "prefill_fp8": (False, 1.05),
            "prefill_int8": (False, 1.2), "prefill_int4": (False, 1.3), "batch16_fp8": (False, 1.2), "batch16_int8": (False, 1.3),
            "batch16_int4": (False, 1.5), "streams4_best": (False, 1.2), "streams8_best": (False, 1.2), "p99_itl": (True, 0.8),
            "start": (True, 1.0), "memory": (True, 1.0)})

    def test_the_best_of_the_peers_counts(self):
        result, cells, reason = ratio("decode_int4", figures(ours_int4={rows.DECODE: 300}, openvino_q4_1={rows.DECODE: 200}))
        self.assertEqual((result, reason), (1.5, None))
        self.assertEqual((cells[0]["peer"], cells[0]["peer_figure"]), ("openvino-q4_1", 200))

    def test_the_worst_cell_decides(self):
        slow = {("prefill", "512"): 160, ("prefill", "2048"): 90}
        result, cells, _ = ratio("prefill_fp8", figures(ours_fp8=slow, ours_bf16={("prefill", "512"): 120}))
        self.assertEqual(result, 0.9)
        self.assertEqual([(cell["cell"], cell["ratio"]) for cell in cells], list(zip(FP8_CELLS, [1.6, 0.9, 1.2, 1.0])))

    def test_of_a_latency_the_lowest_peer_counts_and_the_highest_cell_decides(self):
        result, cells, _ = ratio("p99_itl", figures(ours_int8={rows.P99: 30}, ours_int4={rows.P99: 60}, vllm_bf16={rows.P99: 80}))
        self.assertEqual(result, 0.75)
        self.assertEqual([(cell["ours"], cell["peer"]) for cell in cells], [("ours-int8", "vllm-bf16"), ("ours-int4", "vllm-bf16")])
        self.assertTrue(rows.BY_NAME["p99_itl"].meets(result, SMALL))

    def test_memory_is_held_against_the_leaner_peer_of_as_many_bits(self):
        result, cells, _ = ratio("memory", figures(llama_q4_0={("memory_mib",): 50}, vllm_w8a8={("memory_mib",): 400}))
        self.assertEqual(result, 2.0)
        self.assertEqual([cell["peer"] for cell in cells], ["llama-q4_0", "llama-q8_0", "llama-q8_0", "vllm-bf16"])

    def test_start_is_held_against_llama_cpp_alone(self):
        named = {name for cell in rows.BY_NAME["start"].cells for name in cell.peers}
        self.assertEqual(named, {"llama-q4_0", "llama-q4_1", "llama-q8_0", "llama-bf16"})

    def test_without_one_of_its_peers_a_key_has_no_ratio_but_the_cells_keep_theirs(self):
        some = figures()
        del some["vllm-bf16"]
        result, cells, reason = ratio("decode_bf16", some, {"vllm-bf16": "left out by --without vllm"})
        self.assertEqual((result, reason), (None, "vllm-bf16: left out by --without vllm"))
        self.assertEqual((cells[0]["peer"], cells[0]["ratio"]), ("llama-bf16", 1.0))

    def test_those_that_are_missing_for_one_reason_are_named_together(self):
        some = {name: each for name, each in figures().items() if name not in ("llama-q4_0", "llama-q4_1", "openvino-q4_1")}
        why = {"llama-q4_0": "left out", "llama-q4_1": "left out", "openvino-q4_1": "failed"}
        self.assertEqual(ratio("batch16_int4", some, why)[2], "llama-q4_0, llama-q4_1: left out; openvino-q4_1: failed")

    def test_a_cell_that_was_not_measured_is_named(self):
        some = figures()
        del some["llama-q8_0"]["streams"]["1"]
        self.assertEqual(ratio("decode_fp8", some)[::2], (None, "llama-q8_0: not measured: streams 1 decode_tok_s"))

    def test_without_any_peer_there_is_no_figure(self):
        some = {name: each for name, each in figures().items() if name.startswith("ours")}
        _, cells, _ = ratio("batch16_int8", some)
        self.assertEqual([(cell["peer"], cell["ratio"]) for cell in cells], [(None, None)] * 2)

    def test_the_large_model_has_keys_and_limits_of_its_own(self):
        result = rows.ratios(rows.KEYS, LARGE, figures(ours_int4={rows.DECODE: 96}), {})
        self.assertEqual(result["required"]["decode_int4_1b"], {"at_least": 0.95, "met": True})
        self.assertEqual(result["required"]["prefill_int4_1b"], {"at_least": 1.0, "met": True})
        self.assertEqual(result["required"]["p99_itl_1b"], {"at_most": 1.0, "met": True})

    def test_what_a_key_needs(self):
        self.assertEqual(rows.needs([rows.BY_NAME["decode_fp8"]]), {"ours-fp8": ((1,), ()), "llama-q8_0": ((1,), ())})
        self.assertEqual(rows.needs([rows.BY_NAME["prefill_int8"]]), {"ours-int8": ((), (512, 2048)), "vllm-w8a8": ((), (512, 2048))})
        self.assertEqual(rows.needs([rows.BY_NAME["memory"]])["llama-q4_0"], ((16,), ()))


class Medians(unittest.TestCase):
    def test_of_each_number_whatever_lies_around_it(self):
        rounds = [{"a": {"b": n}, "name": "x", "none": None} for n in (3, 1, 2)]
        self.assertEqual(rows.medians(rounds), {"a": {"b": 2}, "name": "x", "none": None})

    def test_a_part_that_some_rounds_lack_is_of_those_that_have_it(self):
        self.assertEqual(rows.medians([{"a": 1}, {"a": 3, "b": 5}]), {"a": 2, "b": 5})


class Shares(unittest.TestCase):
    MACHINE = {"read_bytes_s": 40e9, "int8_operations_s": 1e12, "bf16_operations_s": 0.5e12}

    def test_of_bandwidth_and_of_the_peak_of_the_own_product(self):
        measured = {"streams": {"1": {"decode_tok_s": 30}}, "prefill": {"512": 200}}
        shares = machine_share.of_machine(measured, self.MACHINE, 1_000_000_000, 1_000_000_000, contestants.BF16)
        self.assertEqual(shares, {"decode": 0.75, "prefill": {"512": 0.8}})

    def test_without_a_probe_there_are_none(self):
        self.assertEqual(machine_share.of_machine({}, None, 1, 1, contestants.INT8), {})

    def test_the_worst_length_decides_and_what_is_missing_is_named(self):
        some = {"ours-int8": {"of_machine": {"decode": 0.9, "prefill": {"512": 0.7, "2048": 0.6}}}}
        result = machine_share.required(LARGE, some, {"ours-int4": "failed"}, {"ours-int8", "ours-int4"})
        self.assertEqual(result["fractions"], {"decode_int4_of_bandwidth_1b": None, "prefill_int8_of_peak_1b": 0.6, "prefill_int4_of_peak_1b": None})
        self.assertEqual(result["fractions_required"]["prefill_int8_of_peak_1b"], {"at_least": 0.65, "met": False})
        self.assertEqual(result["fractions_reasons"]["decode_int4_of_bandwidth_1b"], "ours-int4: failed")

    def test_the_linear_layers_of_llama_3_2_1b(self):
        config = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192}
        self.assertEqual(machine_share.linear_parameters(config), 973_078_528)
