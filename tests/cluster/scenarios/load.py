"""Requests to a model without a pause, each counted: what was answered, what was refused, what broke off."""

import errno
import http.client
import json
import random
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

WORDS = "river stone lamp window garden letter morning engine paper silver market bridge winter orange music harbour".split()


# What is sent to the address of a pod that is gone has no answer; the kernel would try for minutes.
CONNECT = 3


@dataclass
class Outcome:
    """What became of the requests."""

    answered: int = 0
    refused: int = 0
    """Connections that nobody took: none of the model's workers was there."""
    failed: list[str] = field(default_factory=list)
    """Anything else: a status that is none of success, an answer that broke off, no answer in time."""
    profiles: list[str] = field(default_factory=list)
    """The profile that each answer came from, in the order of the answers."""
    longest_refusal: float = 0
    """Seconds between the first refusal after an answer and the next answer."""


class Load:
    """`with Load(url) as load: ...` sends; afterwards `load.outcome` has the counts."""

    def __init__(self, url: str, clients: int = 2, tokens: int = 24, limit: float = 60, pause: float = 0.0) -> None:
        at = urllib.parse.urlsplit(url)
        self.host, self.port = at.hostname, at.port
        self.clients, self.tokens, self.limit, self.pause = clients, tokens, limit, pause
        self.outcome = Outcome()
        self.lock = threading.Lock()
        self.end = threading.Event()
        self.threads: list[threading.Thread] = []
        self.refused_since: float | None = None

    def __enter__(self) -> "Load":
        self._known()
        self.threads = [threading.Thread(target=self._client, args=(seed,), daemon=True) for seed in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join(self.limit + 10)

    def wait_for_answers(self, more: int, seconds: float = 60) -> None:
        """Until that many more requests were answered."""
        goal, limit = self.outcome.answered + more, time.monotonic() + seconds
        while self.outcome.answered < goal:
            if time.monotonic() > limit:
                raise AssertionError(f"{self.outcome.answered} of {goal} requests were answered within {seconds:.0f} s: {self.outcome}")
            time.sleep(0.05)

    def _known(self) -> None:
        """Until a connection is taken: kube-proxy may not have heard of the Service yet, which is nothing that a model did."""
        limit = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection((self.host, self.port), timeout=CONNECT):
                    return
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.1)

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.end.is_set():
            prompt = " ".join(chance.choices(WORDS, k=chance.randint(4, 40)))
            self._request(prompt)
            if self.pause:
                self.end.wait(self.pause)

    def _request(self, prompt: str) -> None:
        body = json.dumps({
            "model": "smollm2", "prompt": prompt, "max_tokens": self.tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        })
        # A connection for each request: a kept one stays with its pod, whatever the Service says.
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT)
        try:
            connection.connect()
            connection.sock.settimeout(self.limit)
        except OSError as why:
            with self.lock:
                self.outcome.refused += 1
                self.refused_since = self.refused_since or time.monotonic()
                # The others come from the address of a pod that is gone, until kube-proxy has heard of it.
                gone = isinstance(why, (ConnectionRefusedError, TimeoutError)) or why.errno == errno.EHOSTUNREACH
                if not gone:
                    self.outcome.failed.append(f"connecting: {why!r}")
            time.sleep(0.05)
            return
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            why = None
            if answer.status != 200:
                why = f"status {answer.status}: {text[:200]}"
            elif "data: [DONE]" not in text:
                why = f"the answer broke off after {len(text)} bytes: …{text[-200:]}"
            elif '"error"' in text:
                why = f"an error within the answer: {text[-300:]}"
        except (OSError, http.client.HTTPException) as error:
            text, why = "", repr(error)
        finally:
            connection.close()
        with self.lock:
            if why:
                self.outcome.failed.append(why)
                return
            self.outcome.answered += 1
            mark = "fp_modelprofile_"
            if mark in text:
                self.outcome.profiles.append(text.rsplit(mark, 1)[1].split('"', 1)[0])
            if self.refused_since is not None:
                gap = time.monotonic() - self.refused_since
                self.outcome.longest_refusal = max(self.outcome.longest_refusal, gap)
                self.refused_since = None


def cache_alone(percent: int) -> dict:
    """Targets of which the KV cache's alone counts: how long requests wait depends on the machine, and on who else has work for it."""
    return {"kvCacheUtilizationPercent": percent, "queueTimeSeconds": 600, "timeToFirstTokenSeconds": 600}
