"""What engines are started with."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path

from effort import EFFORTS
from peers import contestants, files, launch, models
from peers.launch import Room
from peers.process import Failed

METRICS = """# TYPE modelprofile_memory_bytes gauge
modelprofile_memory_bytes{kind="budget",model_name="bench"} 1000
modelprofile_memory_bytes{kind="weights",model_name="bench"} 300
modelprofile_memory_bytes{kind="workspace",model_name="bench"} 50
vllm:cache_config_info{block_size="16",num_gpu_blocks="2176",model_name="bench"} 1
"""


class Rooms(unittest.TestCase):
    def test_each_stream_has_room_for_the_longest_prompt(self):
        room = Room.of((1, 4, 8, 16), (512, 2048), EFFORTS["full"])
        self.assertEqual((room, room.kv_tokens), (Room(16, 2176), 34816))

    def test_without_long_prompts_for_prompt_and_answer(self):
        self.assertEqual(Room.of((4,), (), EFFORTS["full"]), Room(4, 384))
        self.assertEqual(Room.of((), (), EFFORTS["quick"]), Room(1, 128))


class Metrics(unittest.TestCase):
    def test_what_takes_the_memory(self):
        self.assertEqual(launch.memory_of(METRICS), {"budget": 1000, "weights": 300, "workspace": 50})

    def test_the_tokens_of_the_cache(self):
        self.assertEqual(launch.kv_tokens_of(METRICS), 34816)
        self.assertIsNone(launch.kv_tokens_of(""))

    def test_a_worker_that_does_not_tell_is_named(self):
        with self.assertRaisesRegex(Failed, "build the worker"):
            launch.memory_of("")


class Commands(unittest.TestCase):
    def test_every_contestant_has_a_way_to_start(self):
        self.assertEqual(set(launch.FAMILIES), set(contestants.FAMILIES))
        self.assertEqual(set(launch.OURS), set(contestants.ours()))


class Made(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        tools = files.Tools(cache=Path(folder.name), gguf=Path("model.gguf"), checkpoint=Path("checkpoint"))
        self.files = files.Files(models.SMOLLM2, tools, threads=1)

    def make(self, script):
        with contextlib.redirect_stderr(io.StringIO()):
            return self.files.make(self.files.folder / "made", "a file", lambda part: ["sh", "-c", script, "sh", part])

    def test_a_file_is_made_once(self):
        self.assertEqual(self.make("echo one > $1").read_text(), "one\n")
        self.assertEqual(self.make("echo two > $1").read_text(), "one\n")

    def test_one_that_was_not_finished_is_not_there(self):
        with self.assertRaisesRegex(Failed, "a file could not be made") as caught:
            self.make("echo half > $1; echo no space; exit 1")
        self.assertEqual(caught.exception.log, "no space\n")
        self.assertEqual([path.name for path in self.files.folder.iterdir()], ["made.log"])

    def test_what_needs_a_tool_that_was_left_out_says_so(self):
        self.assertEqual(self.files.gguf("Q4_1"), Path("model.gguf"))
        for make in (lambda: self.files.gguf("Q8_0"), self.files.w8a8):
            with self.assertRaisesRegex(Failed, "is left out"):
                make()
