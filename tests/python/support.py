"""What the tests share: requests with their defaults, the admin API, workers of their own."""
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import openai

URL = os.environ["MODELPROFILE_URL"]
ADMIN_URL = os.environ["MODELPROFILE_ADMIN_URL"]
MODEL = os.environ["MODELPROFILE_MODEL"]
PROMPT = "The capital of France is"

# How long a test waits for what must come.
LIMIT = 100


def new_client(url=URL):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LIMIT)


def complete(client, **options):
    defaults = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    return client.completions.create(**{**defaults, **options})


def chat(client, **options):
    messages = [{"role": "user", "content": "Name three primary colors."}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0, **options})


def stream(client, tokens, **options):
    """A stream of exactly so many tokens."""
    return complete(client, stream=True, max_tokens=tokens, extra_body={"ignore_eos": True}, **options)


def request(url, body=None, method=None):
    """The answer of our own API as JSON."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['MODELPROFILE_ADMIN_TOKEN']}"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=LIMIT) as answer:
        return json.load(answer)


def tokenize(text):
    return request(f"{URL}/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]


def state(admin_url=ADMIN_URL):
    return request(f"{admin_url}/admin/v1/state")


def switch(profile, admin_url=ADMIN_URL):
    return request(f"{admin_url}/admin/v1/profile", {"profile": profile}, "PUT")


def metric(name, admin_url=ADMIN_URL):
    """The sum over the label values of a metric."""
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=LIMIT) as answer:
        lines = answer.read().decode().splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")]
    assert values, f"there is no metric {name}"
    return sum(values)


def eventually(what, holds):
    end = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


class Worker:
    """A worker of a test's own."""

    def __init__(self, process, port, admin_port):
        self.process = process
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.client = new_client(f"http://127.0.0.1:{port}")

    def ready(self):
        assert self.process.poll() is None, "the worker ended"
        try:
            return state(self.admin_url)["phase"] == "Ready"
        except OSError:
            return False

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def worker(*options):
    """Starts a worker with these options and waits until it is ready."""
    held = [socket.socket(), socket.socket()]
    for s in held:
        s.bind(("127.0.0.1", 0))
    port, admin_port = (s.getsockname()[1] for s in held)
    for s in held:
        s.close()
    command = [os.environ["MODELPROFILE_WORKER"], "serve", "--config", os.environ["MODELPROFILE_MANIFEST"]]
    command += ["--cache", os.environ["MODELPROFILE_CACHE"], "--port", str(port), "--admin-port", str(admin_port), *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            own = Worker(process, port, admin_port)
            eventually("the start", own.ready)
            yield own
        except BaseException:
            log.seek(0)
            print(log.read())
            raise
        finally:
            process.kill()
            process.wait()
