"""Overload, clients that leave, switches under load, and the end of a worker."""
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from support import LIMIT, complete, eventually, metric, state, stream, switch, worker


def test_a_full_queue_is_a_rate_limit_and_has_room_again_when_clients_leave():
    with worker("--max-running", "1", "--max-waiting", "2") as own, ThreadPoolExecutor(3) as pool:
        leave = threading.Event()

        def occupy():
            chunks = stream(own.client, 1500)
            # The headers of a waiting request come at once, its first token does not: leaving closes the connection.
            leave.wait()
            chunks.close()

        def has(**requests):
            return lambda: requests.items() <= state(own.admin_url)["requests"].items()

        held = [pool.submit(occupy)]
        try:
            # Until it runs, the first takes a place in the queue as well.
            eventually("a running request", has(running=1, waiting=0))
            held += [pool.submit(occupy), pool.submit(occupy)]
            eventually("a full queue", has(running=1, waiting=2))
            with pytest.raises(openai.RateLimitError) as error:
                complete(own.client)
            assert error.value.code == "rate_limit_exceeded"
            assert int(error.value.response.headers["retry-after"]) >= 1
        finally:
            leave.set()
        for future in held:
            future.result()
        eventually("an empty queue", has(waiting=0))
        assert complete(own.client).choices[0].text.startswith(" Paris")
        eventually("the end of all requests", has(running=0))


def test_switches_and_leaving_clients_fail_no_request_and_leave_no_block(client):
    stop = threading.Event()

    def finish(seed):
        """Requests that run to their end."""
        answered = 0
        while not stop.is_set():
            chunks = list(stream(client, 24, seed=seed, temperature=1.0, stream_options={"include_usage": True}))
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
            assert chunks[-1].usage.completion_tokens == 24
            answered += 1
        return answered

    def leave(seed):
        """Requests whose client goes away after two tokens."""
        left = 0
        while not stop.is_set():
            chunks = stream(client, 500, seed=seed, prompt=f"{seed} " * 40)
            next(chunks), next(chunks)
            chunks.close()
            left += 1
        return left

    switches = metric("modelprofile_switches_total")
    with ThreadPoolExecutor(6) as pool:
        finishing = [pool.submit(finish, seed) for seed in range(3)]
        leaving = [pool.submit(leave, seed) for seed in range(3)]
        try:
            for profile in ["density", "quality"] * 3:
                assert switch(profile)["outcome"] == "Completed"
                assert state()["activeProfile"] == profile
        finally:
            stop.set()
        assert all(future.result() > 0 for future in finishing + leaving)
    assert metric("modelprofile_switches_total") == switches + 6
    # The latest switch keeps its time, whenever one asks.
    latest = state()["lastSwitch"]
    assert latest["to"] == "quality" and state()["lastSwitch"] == latest
    eventually("the end of all requests", lambda: metric("vllm:num_requests_running") == 0)
    assert state()["kv"]["blocksUsed"] == 0
    assert metric("vllm:kv_cache_usage_perc") == 0
    assert complete(client).system_fingerprint == "fp_modelprofile_quality"


def test_at_sigterm_streams_run_to_their_end_and_new_requests_are_refused():
    with worker() as own, ThreadPoolExecutor(3) as pool:
        begun = threading.Barrier(4)

        def run(seed):
            chunks = stream(own.client, 64, seed=seed, temperature=1.0)
            next(chunks)
            begun.wait()
            return list(chunks)[-1].choices[0].finish_reason

        # Runs for as long as the test needs a worker that is not empty.
        longest = stream(own.client, 2000)
        next(longest)
        running = [pool.submit(run, seed) for seed in range(3)]
        begun.wait()
        own.terminate()
        eventually("the drain", lambda: state(own.admin_url)["phase"] == "Draining")
        # Refused by the kernel, with nothing begun: whoever balances the load may send it elsewhere.
        with pytest.raises(openai.APIConnectionError):
            complete(own.client)
        assert [future.result() for future in running] == ["length"] * 3
        assert own.process.poll() is None, "the worker ended with a stream under way"
        longest.close()
        assert own.process.wait(timeout=LIMIT) == 0
