#!/usr/bin/env python3
"""Any number of workers without a model, in one process: the admin API of each address that a connection arrives at.

  fake_workers.py [--address 0.0.0.0] [--port 8001]

What they say has the size and the names of what a real worker says under a steady load of four requests; counters rise. Answers
are made ahead, so that thousands of them a second leave the processor to what is measured. GET /fake tells what was asked."""

import argparse
import asyncio
import json
import re
import time

PROFILES = ("quality", "density")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
# Name, number of buckets, and the bucket from which on all values fall into it. With the plain series below as many as a worker
# of this version has, and as much text.
HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", 22, 7), ("vllm:inter_token_latency_seconds", 19, 2),
    ("vllm:e2e_request_latency_seconds", 21, 6), ("vllm:request_queue_time_seconds", 21, 0),
    ("vllm:request_prompt_tokens", 19, 7), ("vllm:request_generation_tokens", 19, 6),
    ("modelprofile_switch_duration_seconds", 11, 3), ("modelprofile_switch_pause_seconds", 11, 3),
)
COUNTERS = (
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total", *(f'vllm:request_success_total{{finished_reason="{why}"' for why in ("stop", "length", "abort", "error")),
    *(f'modelprofile_switches_total{{outcome="{how}"' for how in ("completed", "refused", "replaced")),
    *(f'modelprofile_generated_tokens_total{{profile="{name}"' for name in PROFILES),
)
GAUGES = (
    ("vllm:num_requests_running", 4), ("vllm:num_requests_waiting", 0), ("vllm:kv_cache_usage_perc", 0.4),
    ("modelprofile_oldest_waiting_seconds", 0), ("modelprofile_engine_stalled_seconds", 0),
    ('vllm:cache_config_info{block_size="16",num_gpu_blocks="1343"', 1), ('modelprofile_build_info{version="fake"', 1),
    *((f'modelprofile_kv_blocks{{state="{state}"', count) for state, count in (
        ("total", 1343), ("used", 537), ("cached", 200), ("waiting", 0),
    )),
    *((f'modelprofile_memory_bytes{{kind="{kind}"', 139079680) for kind in ("budget", "kv", "weights", "workspace")),
)
MEASURED = {
    "perplexity": 30.99834830137666, "referencePerplexity": 30.22682894619341, "meanKLDivergence": 0.030814919291450023,
    "p99KLDivergence": 0.17572748018017728, "top1AgreementPercent": 88.57142857142857,
    "rmsProbabilityChangePercent": 4.087032147134452, "tokens": 1785, "dataset": "built-in 7d359772e167",
    "measuredAt": "2026-01-01T00:00:00Z",
}
LIMITS = {"maxPerplexityIncreasePercent": 10, "maxMeanKLDivergence": "0.1", "onFailure": "Block"}


def answer(body: bytes | str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def report(old: str, new: str) -> dict:
    return {
        "from": old, "to": new, "startTime": "2026-01-01T00:00:00Z", "durationMillis": 5, "pauseMillis": 1.0, "preempted": 0,
        "outcome": "Completed", "message": "",
    }


def state(active: str, switched: dict | None) -> bytes:
    return answer(json.dumps({
        "version": "fake", "servedName": "fleet", "phase": "Ready", "message": "", "activeProfile": active, "targetProfile": None,
        "profiles": [
            {
                "name": name, "artifactKey": "38327e4e181e39a434a5b28c64847075", "weightBytes": weights, "kvTokens": tokens,
                "preparedPercent": 100.0, "activity": "", "quality": MEASURED,
            } for name, weights, tokens in zip(PROFILES, (139079680, 99266560), (21488, 24944))
        ],
        "kv": {"blocksTotal": 1343, "blocksUsed": 537, "blocksCached": 200, "blockTokens": 16},
        "requests": {"running": 4, "waiting": 0, "oldestWaitingSeconds": 0.0, "tokensPerSecond": 50.0, "stalledSeconds": 0.0},
        "memory": {"budgetBytes": 419430400, "weightBytes": 139079680, "kvBytes": 247541760, "workspaceBytes": 32784384},
        "lastSwitch": switched, "qualityLimits": LIMITS,
    }))


def metrics(active: str, count: int) -> bytes:
    """After so many requests."""
    lines = []

    def series(name: str, value: object) -> None:
        lines.append(f'{name}{"," if "{" in name else "{"}model_name="fleet"}} {value}')

    for name, buckets, full in HISTOGRAMS:
        lines.append(f"# HELP {name} What it counts, as a sentence of the usual length.\n# TYPE {name} histogram")
        bounds = [f"{0.001 * 2 ** bucket:g}" for bucket in range(buckets)]
        for bucket, bound in enumerate([*bounds, "+Inf"]):
            series(f'{name}_bucket{{le="{bound}"', count if bucket >= full else 0)
        series(f"{name}_sum", count * 0.001 * 2 ** full)
        series(f"{name}_count", count)
    for kind, values in (("counter", [(name, 10 * count) for name in COUNTERS]), ("gauge", GAUGES)):
        for name, value in values:
            plain = name.split("{")[0]
            lines.append(f"# HELP {plain} What it counts, as a sentence of the usual length.\n# TYPE {plain} {kind}")
            series(name, value)
    for name in PROFILES:
        series(f'modelprofile_active_profile{{profile="{name}"', int(name == active))
    return answer("\n".join(lines) + "\n", kind="text/plain; version=0.0.4")


class Fakes:
    """What all of them say, and what they were asked."""

    def __init__(self) -> None:
        self.active: dict[str, str] = {}
        """By address, once it was asked to switch."""
        self.switched_at: dict[str, float] = {}
        self.heard_at: dict[str, float] = {}
        """When its state was asked for last."""
        self.counts = {"state": 0, "metrics": 0, "switches": 0, "connections": 0, "refused": 0}
        self.states = {(name, switched): state(name, report(other, name) if switched else None)
                       for name, other in (PROFILES, PROFILES[::-1]) for switched in (False, True)}
        self.metrics: dict[str, bytes] = {}

    async def tick(self) -> None:
        """Two requests a second."""
        start = time.monotonic()
        while True:
            count = 100 + 2 * int(time.monotonic() - start)
            self.metrics = {name: metrics(name, count) for name in PROFILES}
            await asyncio.sleep(1)

    def switch(self, address: str, body: bytes) -> bytes:
        self.counts["switches"] += 1
        wanted, before = json.loads(body)["profile"], self.active.get(address, PROFILES[0])
        self.active[address] = wanted
        self.switched_at[address] = time.time()
        return answer(json.dumps(report(before, wanted)))

    def told(self) -> bytes:
        return answer(json.dumps({"counts": self.counts, "active": self.active, "switched_at": self.switched_at, "heard_at": self.heard_at}))


class Connection(asyncio.Protocol):
    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.rest = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.address = transport.get_extra_info("sockname")[0]
        self.fakes.counts["connections"] += 1

    def connection_lost(self, _: Exception | None) -> None:
        self.fakes.counts["connections"] -= 1

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while True:
            head, end, rest = self.rest.partition(b"\r\n\r\n")
            if not end:
                return
            found = head.startswith(b"PUT") and LENGTH.search(head)
            length = int(found.group(1)) if found else 0
            if len(rest) < length:
                return
            self.rest = rest[length:]
            self.transport.write(self.respond(head, rest[:length]))

    def respond(self, head: bytes, body: bytes) -> bytes:
        fakes = self.fakes
        if head.startswith(b"GET /metrics "):
            fakes.counts["metrics"] += 1
            return fakes.metrics[fakes.active.get(self.address, PROFILES[0])]
        if head.startswith(b"GET /fake "):
            return fakes.told()
        if b"uthorization: Bearer " not in head:
            fakes.counts["refused"] += 1
            return answer("{}", "401 Unauthorized")
        if head.startswith(b"GET /admin/v1/state "):
            fakes.counts["state"] += 1
            fakes.heard_at[self.address] = time.time()
            return fakes.states[fakes.active.get(self.address, PROFILES[0]), self.address in fakes.active]
        if head.startswith(b"PUT /admin/v1/profile "):
            return fakes.switch(self.address, body)
        if head.startswith(b"PUT /admin/v1/quality "):
            return answer("", "204 No Content")
        return answer("{}", "404 Not Found")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8001)
    arguments = parser.parse_args()
    fakes = Fakes()
    ticking = asyncio.create_task(fakes.tick())
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(fakes), arguments.address, arguments.port, backlog=4096, reuse_address=True,
    )
    print("ready", flush=True)
    await asyncio.gather(ticking, server.serve_forever())


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
