"""The plan, how long it takes, and what is kept."""

import contextlib
import io
import tempfile
import unittest

from effort import EFFORTS, Effort
from peers import contestants, models, options, rounds
from peers.rounds import Store, Task


def planned(*words):
    return options.plan(options.parser().parse_args(words))


def refused(*words):
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            planned(*words)
        except SystemExit as end:
            return str(end)
    return None


class Plans(unittest.TestCase):
    def test_without_options_everybody_is_measured_on_both_models_in_five_rounds(self):
        plan = planned()
        self.assertEqual(list(plan.needs), list(contestants.BY_NAME))
        self.assertEqual(len(plan.tasks), 2 * 5 * len(contestants.ALL))
        self.assertEqual(plan.families, ("llama", "ours", "openvino", "vllm"))

    def test_rounds_interleave_the_contestants(self):
        plan = planned("--models", "smollm2", "--rounds", "2", "--without", "vllm", "--without", "openvino", "--without", "ours",
                       "--without", "llama-q4_1", "--without", "llama-bf16")
        self.assertEqual([(task.round, task.contestant) for task in plan.tasks],
                         [(1, "llama-q4_0"), (1, "llama-q8_0"), (2, "llama-q4_0"), (2, "llama-q8_0")])

    def test_who_is_left_out_has_the_reason(self):
        plan = planned("--without", "openvino", "--missing", "vllm=could not be installed", "--without", "llama-q4_1")
        self.assertEqual(plan.missing, {
            "openvino-q4_1": "left out by --without openvino", "llama-q4_1": "left out by --without llama-q4_1",
            "vllm-w8a8": "could not be installed", "vllm-bf16": "could not be installed"})

    def test_only_some_keys_need_only_their_contestants_and_cells(self):
        plan = planned("--only", "decode_fp8", "prefill_int8_1b")
        self.assertEqual(plan.needs, {
            "llama-q8_0": ((1,), ()), "ours-int8": ((), (512, 2048)), "vllm-w8a8": ((), (512, 2048)), "ours-fp8": ((1,), ())})
        self.assertEqual([model.name for model in plan.models], ["smollm2", "1b"])
        self.assertEqual([model.name for model in planned("--only", "decode_fp8_1b").models], ["1b"])

    def test_a_quick_run_is_one_round_of_few_tokens(self):
        arguments = options.parser().parse_args(["--quick"])
        self.assertEqual(options.plan(arguments).rounds, 1)
        self.assertEqual(options.effort_of(arguments, models.LLAMA_1B), EFFORTS["quick"])

    def test_the_reference_run_is_ours_beside_one_peer_on_the_small_model(self):
        plan = planned("--reference")
        self.assertEqual(list(plan.needs), ["ours-int4", "llama-q8_0", "ours-int8", "ours-fp8", "ours-bf16"])
        self.assertEqual(([model.name for model in plan.models], plan.rounds), (["smollm2"], 3))

    def test_what_is_unknown_is_refused_with_what_there_is(self):
        self.assertIn("there are decode_int4,", refused("--only", "decode"))
        self.assertIn("llama, ours, openvino, vllm", refused("--without", "tgi"))
        self.assertIn("there are smollm2, 1b", refused("--models", "8b"))
        self.assertIn("end in _1b", refused("--only", "decode_fp8", "--models", "1b"))
        self.assertIn("nothing is left", refused("--only", "decode_fp8", "--without", "llama", "--without", "ours"))


class Estimates(unittest.TestCase):
    TASK = Task("smollm2", "llama-q4_0", 1, (1, 16), (512,))

    def test_the_tokens_of_a_task(self):
        effort = Effort({1: 2, 16: 16}, prefills=3, prompt_tokens=10, output_tokens=5)
        self.assertEqual(rounds.tokens(self.TASK, effort), 18 * 15 + 3 * 512)

    def test_what_was_measured_takes_the_place_of_the_guess(self):
        other = Task("smollm2", "ours-int4", 1, (1,), ())
        known = {("smollm2", "llama-q4_0"): 100}
        self.assertEqual(rounds.seconds_left([self.TASK, other, self.TASK], known, lambda task: 7), 207)

    def test_durations_for_people(self):
        self.assertEqual([rounds.duration(s) for s in (12, 90, 3600, 5000)], ["12 s", "2 min", "1 h 0 min", "1 h 23 min"])


class Failures(unittest.TestCase):
    def test_who_fails_is_left_out_from_then_on_and_the_others_go_on(self):
        tasks = rounds.tasks(["smollm2", "1b"], {"llama-q4_0": ((), ()), "vllm-bf16": ((), ())}, 2)
        done, told, failed = [], [], {("1b", "llama-q4_0"): "cannot be started: no room"}

        def one(task):
            if (task.model, task.contestant, task.round) == ("smollm2", "vllm-bf16", 1):
                raise RuntimeError("it ended with status 1")
            done.append((task.model, task.contestant, task.round))

        rounds.go(tasks, one, failed, lambda task, error: told.append(str(error)), lambda task, left: told.append(len(left)))
        self.assertEqual(done, [("smollm2", "llama-q4_0", 1), ("smollm2", "llama-q4_0", 2), ("1b", "vllm-bf16", 1), ("1b", "vllm-bf16", 2)])
        self.assertEqual(failed["smollm2", "vllm-bf16"], "failed in round 1: it ended with status 1")
        self.assertEqual(told, [6, 5, "it ended with status 1", 3, 2, 1])


class Kept(unittest.TestCase):
    TASK = Task("smollm2", "llama-q4_0", 2, (1, 16), (512,))

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name

    def store(self, resume, **circumstances):
        store = Store(self.root, circumstances)
        store.begin([self.TASK], resume)
        return store

    def test_a_run_that_goes_on_finds_what_was_measured(self):
        self.store(False).put(self.TASK, {"start_s": 1})
        self.assertEqual(self.store(True).get(self.TASK), {"start_s": 1})

    def test_a_run_that_does_not_go_on_finds_nothing(self):
        self.store(False).put(self.TASK, {"start_s": 1})
        self.assertIsNone(self.store(False).get(self.TASK))

    def test_and_loses_nothing_of_the_contestants_that_it_does_not_measure(self):
        other = Task("1b", "llama-q4_0", 2, (1,), ())
        self.store(False).put(other, {"start_s": 2})
        self.assertEqual(self.store(False).get(other), {"start_s": 2})

    def test_another_round_or_contestant_is_not_it(self):
        store = self.store(False)
        store.put(self.TASK, {"start_s": 1})
        self.assertIsNone(store.get(Task("smollm2", "llama-q4_0", 3, (1,), ())))
        self.assertIsNone(store.get(Task("smollm2", "llama-q8_0", 2, (1,), ())))
        self.assertIsNone(store.get(Task("1b", "llama-q4_0", 2, (1,), ())))

    def test_a_result_serves_a_task_with_fewer_cells_and_none_with_more(self):
        store = self.store(False)
        store.put(self.TASK, {"start_s": 1})
        self.assertEqual(store.get(Task("smollm2", "llama-q4_0", 2, (16,), ())), {"start_s": 1})
        self.assertIsNone(store.get(Task("smollm2", "llama-q4_0", 2, (16,), (512, 2048))))

    def test_under_other_circumstances_nothing_is_taken(self):
        self.store(False, worker="a").put(self.TASK, {"start_s": 1})
        self.assertIsNone(self.store(True, worker="b").get(self.TASK))
        self.assertEqual(self.store(True, worker="a").get(self.TASK), {"start_s": 1})

    def test_of_another_version_of_an_engine_nothing_is_taken(self):
        store = self.store(False)
        store.put(self.TASK, {"start_s": 1}, "llama.cpp-1")
        self.assertIsNone(store.get(self.TASK, "llama.cpp-2"))
        self.assertEqual(store.get(self.TASK, "llama.cpp-1"), {"start_s": 1})

    def test_a_file_that_was_cut_counts_as_not_measured(self):
        store = self.store(False)
        store.path(self.TASK).write_text('{"levels": [1')
        self.assertIsNone(store.get(self.TASK))
