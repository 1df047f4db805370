#!/usr/bin/env python3
"""A worker without a model: it speaks the admin API, so that the tests of local mode see every state within a second.

It takes the command line of the real worker, and does not start with a manifest that does not name the profile. Its profiles are
quality and density; each look at its state prepares a bit more. A profile named in FAKE_REFUSES is refused. The file named by
FAKE_DIES, once it exists, makes it die; while the file named by FAKE_HANGS exists, it does not answer. The file named by
FAKE_LOAD holds the percentage of KV blocks in use, 10 without it; while it says "none", there are no metrics. While the file
named by FAKE_SWITCH says "cut", a switch gets no answer; while it says "die", the worker dies of it. The file named by FAKE_STALLED
holds for how many seconds the engine has been stuck, 0 without it.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
for name in ("config", "profile", "port", "admin-port", "cache"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--exit-with-parent", action="store_true")
parser.add_argument("--drain-seconds", type=int, required=True)
args = parser.parse_args()
with open(args.config) as file:
    if args.profile not in file.read():
        sys.exit(f"{args.config} has no profile {args.profile}")
token = os.environ["MODELPROFILE_ADMIN_TOKEN"]

lock = threading.Lock()
prepared = 0
active = args.profile
last_switch = None


def state():
    global prepared
    prepared = min(100, prepared + 40)
    ready = prepared == 100
    return {
        "version": "fake",
        "servedName": "demo",
        "phase": "Ready" if ready else "Preparing",
        "activeProfile": active if ready else None,
        "profiles": [
            {"name": name, "kvTokens": tokens, "weightBytes": 1000000, "preparedPercent": prepared}
            for name, tokens in (("quality", 1000), ("density", 2000))
        ],
        "requests": {"running": 1, "stalledSeconds": float(content("FAKE_STALLED") or 0)},
        "lastSwitch": last_switch,
    }


def content(variable):
    try:
        with open(os.environ.get(variable, "")) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def metrics():
    used = content("FAKE_LOAD") or "10"
    if used == "none":
        return None
    return f"""modelprofile_kv_blocks{{state="total"}} 100
modelprofile_kv_blocks{{state="used"}} {used}
modelprofile_kv_blocks{{state="waiting"}} 0
modelprofile_oldest_waiting_seconds 0
vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} 0
"""


def report(profile, refusal):
    return {
        "from": active,
        "to": profile,
        "startTime": "2026-01-01T00:00:00Z",
        "durationMillis": 5,
        "pauseMillis": 1.0,
        "preempted": 0,
        "outcome": "Refused" if refusal else "Completed",
        "message": refusal,
    }


def switch(profile):
    global active, last_switch
    if prepared < 100:
        return 503, "preparing the profiles"
    if profile not in ("quality", "density"):
        return 404, report(profile, f"no profile is named {profile}; there are quality, density")
    if profile == os.environ.get("FAKE_REFUSES"):
        return 409, report(profile, "its weights are damaged")
    last_switch = report(profile, "")
    active = profile
    return 200, last_switch


class Admin(BaseHTTPRequestHandler):
    def answer(self, status, body, kind="application/json"):
        data = (json.dumps(body) if kind == "application/json" else body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        if self.headers.get("Authorization") == f"Bearer {token}":
            return True
        self.answer(401, {"error": {"message": "wrong token"}})
        return False

    def do_GET(self):
        while os.path.exists(os.environ.get("FAKE_HANGS", "")):
            time.sleep(0.05)
        dies = os.environ.get("FAKE_DIES")
        if dies and os.path.exists(dies):
            print("loading layer 3", file=sys.stderr)
            print("out of cheese", file=sys.stderr, flush=True)
            os._exit(3)
        if self.path == "/metrics":
            text = metrics()
            self.answer(503 if text is None else 200, text or "", "text/plain")
        elif self.allowed():
            with lock:
                self.answer(200, state())

    def do_PUT(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if content("FAKE_SWITCH") == "die":
            os._exit(3)
        if content("FAKE_SWITCH") == "cut":
            self.close_connection = True
            return
        with lock:
            self.answer(*switch(body["profile"]))

    def log_message(self, *_):
        pass


def finish(*_):
    with open(os.path.join(args.cache, "drained"), "w") as file:
        file.write(active)
    os._exit(0)


def follow_parent():
    sys.stdin.buffer.read()
    finish()


if args.exit_with_parent:
    threading.Thread(target=follow_parent, daemon=True).start()
signal.signal(signal.SIGTERM, finish)
signal.signal(signal.SIGINT, lambda *_: os._exit(9))
ThreadingHTTPServer(("127.0.0.1", int(args.admin_port)), Admin).serve_forever()
