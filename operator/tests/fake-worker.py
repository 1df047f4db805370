#!/usr/bin/env python3
"""A worker without a model: it speaks the admin API, so that the tests of local mode see every state within a second.

It takes the command line of the real worker, and does not start with a manifest that does not name the profile. Its profiles are
quality and density; each look at its state prepares FAKE_PREPARES percent more, all of it without that. A profile named in
FAKE_REFUSES is refused. The file named by
FAKE_DIES, once it exists, makes it die; while the file named by FAKE_HANGS exists, it does not answer. The file named by
FAKE_LOAD holds the percentage of KV blocks in use, 10 without it; while it says "none", there are no metrics. While the file
named by FAKE_SWITCH says "cut", a switch gets no answer; while it says "die", the worker dies of it. The file named by FAKE_STALLED
holds for how many seconds the engine has been stuck, 0 without it. The file named by FAKE_QUALITY holds by how many percent the
perplexity of quality and of density rises ("none" for one that is not measured), 0.5 0.2 without it; of the quality gate it knows
the limit of that figure and onFailure.
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
    text = file.read()
    if args.profile not in text:
        sys.exit(f"{args.config} has no profile {args.profile}")
    limits = json.loads(text)["spec"]["quality"]
token = os.environ["MODELPROFILE_ADMIN_TOKEN"]

lock = threading.Lock()
prepared = 0
active = None
last_switch = None


def increase(name):
    """Rise of perplexity of a profile in percent; None while it is not measured."""
    figures = (content("FAKE_QUALITY") or "0.5 0.2").split()
    figure = figures[("quality", "density").index(name)]
    return None if figure == "none" or prepared < 100 else float(figure)


def may_serve(name):
    figure = increase(name)
    within = figure is not None and figure <= limits["maxPerplexityIncreasePercent"]
    return limits["onFailure"] == "Warn" or within


def measured(name):
    figure = increase(name)
    return {} if figure is None else {
        "quality": {
            "perplexity": 20 + figure / 5,
            "referencePerplexity": 20,
            "meanKLDivergence": 0.01,
            "p99KLDivergence": 0.1,
            "top1AgreementPercent": 95,
            "rmsProbabilityChangePercent": 2,
            "tokens": 2048,
            "dataset": "built-in",
            "measuredAt": "2026-01-01T00:00:00Z",
        }
    }


def state():
    global prepared, active
    prepared = min(100, prepared + int(os.environ.get("FAKE_PREPARES", "100")))
    if prepared == 100 and active is None:
        wanted = [args.profile, "quality", "density"]
        active = next((name for name in wanted if may_serve(name)), None)
    ready = active is not None
    blocked = prepared == 100 and not ready
    return {
        "version": "fake",
        "servedName": "demo",
        "phase": "Ready" if ready else "Blocked" if blocked else "Preparing",
        "message": "every profile lost too much" if blocked else "",
        "activeProfile": active,
        "profiles": [
            {"name": name, "kvTokens": tokens, "weightBytes": 1000000, "preparedPercent": prepared} | measured(name)
            for name, tokens in (("quality", 1000), ("density", 2000))
        ],
        "qualityLimits": limits,
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
    if active is None:
        return 503, "preparing the profiles"
    if profile not in ("quality", "density"):
        return 404, report(profile, f"no profile is named {profile}; there are quality, density")
    if not may_serve(profile):
        return 409, report(profile, f"{profile} lost too much")
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
        global limits
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if self.path == "/admin/v1/quality":
            limits = body
            self.answer(204, "", "text/plain")
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
        file.write(active or "")
    os._exit(0)


def follow_parent():
    sys.stdin.buffer.read()
    finish()


if args.exit_with_parent:
    threading.Thread(target=follow_parent, daemon=True).start()
signal.signal(signal.SIGTERM, finish)
signal.signal(signal.SIGINT, lambda *_: os._exit(9))
ThreadingHTTPServer(("127.0.0.1", int(args.admin_port)), Admin).serve_forever()
