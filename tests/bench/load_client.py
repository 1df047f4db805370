"""Load on an OpenAI-compatible server: streaming completions of prompts of an exact length.

    load_client.py --url http://127.0.0.1:8000 --model NAME --tokenizer tokenizer.json --text FILE
                   [--levels 1,4,8,16] [--prefill 512,2048] [--effort full|short|quick]

Method. Prompts are distinct slices of the text, each exactly N tokens when tokenized again, so that no prefix cache can
help. Requests are greedy, go on past the end-of-text token, and stream; every stream of a level is always busy until the
level's requests run out.

- output tok/s: generated tokens of all requests / wall time of the level, prompts included;
- decode tok/s: the median over requests of (tokens - 1) / (last token - first token);
- TTFT: request sent to first token received; ITL: gap between a request's tokens;
- prefill tok/s: prompt tokens / TTFT of a request for one token, alone, median.

The client is a few hundred microseconds of CPU per request and tens per token: it shares the machine with the server.
"""

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import time
import urllib.parse
from pathlib import Path

import tokenizers

from effort import EFFORTS, Effort


class Prompts:
    """Slices of a text, one after the other, each of exactly the tokens asked for."""

    def __init__(self, tokenizer, text, start=0):
        self.tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
        self.ids = self.encode(Path(text).read_text(encoding="utf-8"))
        self.at = start

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def next(self, length):
        # A slice may tokenize differently alone than inside the text: try neighbours until one has the length.
        for _ in range(1000):
            if self.at + length + 8 > len(self.ids):
                if len(self.ids) < length + 16:
                    sys.exit(f"error: the text has {len(self.ids)} tokens, too few for prompts of {length}")
                self.at = self.at % 5 + 1  # Round again, shifted: still no prompt twice.
            for extra in (0, 1, 2, 3, -1, -2, -3):
                text = self.tokenizer.decode(self.ids[self.at : self.at + length + extra])
                if len(self.encode(text)) == length:
                    self.at += length + extra
                    return text
            self.at += 3
        sys.exit(f"error: found no slice of the text that is {length} tokens on its own")


@dataclasses.dataclass
class Answer:
    sent: float
    prompt_tokens: int
    tokens: int
    times: list  # When each token arrived.


class Chunks:
    """Takes the chunked coding of HTTP/1.1 off a stream and gives the lines of the body."""

    def __init__(self, reader):
        self.reader = reader
        self.rest = b""

    async def lines(self):
        while True:
            line = await self.reader.readline()
            if not line:
                raise RuntimeError("the server closed the connection inside an answer")
            size = int(line.split(b";")[0], 16)
            if size == 0:
                return
            self.rest += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            *lines, self.rest = self.rest.split(b"\n")
            for line in lines:
                yield line


async def complete(url, model, prompt, max_tokens, extra):
    """One streaming completion. A raw socket: HTTP client libraries cost more CPU a token than some servers."""
    body = json.dumps({
        "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}, **extra,
    }).encode()
    target = urllib.parse.urlsplit(url)
    sent = time.perf_counter()
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    try:
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")
        writer.write(head.encode() + body)
        await writer.drain()
        status = await reader.readline()
        chunked = False
        while (line := await reader.readline()).strip():
            chunked |= line.lower().startswith(b"transfer-encoding: chunked")
        if b" 200 " not in status or not chunked:
            raise RuntimeError(f"{status.decode().strip()}: {(await reader.read(2000)).decode(errors='replace')}")
        times, usage = [], {}
        async for line in Chunks(reader).lines():
            if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
                continue
            now = time.perf_counter()
            event = json.loads(line[5:])
            if "error" in event:
                raise RuntimeError(f"the server failed: {event['error']}")
            usage = event.get("usage") or usage
            # A chunk is a token unless it only carries the finish reason; the text may be empty inside a character.
            times += [now for choice in event.get("choices", []) if choice.get("text") or not choice.get("finish_reason")]
        if not times:
            raise RuntimeError("the stream ended without a token")
        return Answer(sent, usage.get("prompt_tokens", 0), usage.get("completion_tokens", len(times)), times)
    finally:
        writer.close()


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def milliseconds(seconds):
    return round(1e3 * seconds, 2)


@dataclasses.dataclass
class Client:
    url: str
    model: str
    prompts: Prompts
    extra: dict
    effort: Effort = EFFORTS["full"]

    async def one(self, prompt, max_tokens):
        return await complete(self.url, self.model, prompt, max_tokens, self.extra)

    async def warm_up(self):
        for _ in range(2):
            await self.one(self.prompts.next(64), 16)

    async def level(self, streams):
        count, length, output = self.effort.count(streams), self.effort.prompt_tokens, self.effort.output_tokens
        waiting = [self.prompts.next(length) for _ in range(count)]
        answers = []

        async def stream():
            while waiting:
                answers.append(await self.one(waiting.pop(), output))

        begin = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(streams)))
        wall = time.perf_counter() - begin
        short = [a for a in answers if a.tokens != output or a.prompt_tokens != length]
        if short:
            raise RuntimeError(
                f"{len(short)} of {count} answers are not {length} + {output} tokens, e.g. "
                f"{short[0].prompt_tokens} + {short[0].tokens}: not comparable")
        ttft = [a.times[0] - a.sent for a in answers]
        gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:])]
        decode = [(a.tokens - 1) / (a.times[-1] - a.times[0]) for a in answers]
        return {
            "output_tok_s": round(sum(a.tokens for a in answers) / wall, 1),
            "decode_tok_s": round(statistics.median(decode), 1),
            "ttft_ms": milliseconds(statistics.mean(ttft)),
            "itl_ms": milliseconds(statistics.mean(gaps)),
            "itl_p99_ms": milliseconds(quantile(gaps, 0.99)),
        }

    async def prefill(self, length):
        """Prompt tokens a second of requests for a single token."""
        answers = [await self.one(self.prompts.next(length), 1) for _ in range(self.effort.prefills)]
        return round(length / statistics.median(a.times[0] - a.sent for a in answers), 1)

    async def measure(self, levels, prefills):
        """All figures of one server: {"streams": {n: {...}}, "prefill": {n: tok/s}}."""
        await self.warm_up()
        streams = {n: await self.level(n) for n in levels}
        return {"streams": streams, "prefill": {n: await self.prefill(n) for n in prefills}}


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--levels", type=numbers, default=[1, 4, 8, 16])
    parser.add_argument("--prefill", type=numbers, default=[512, 2048])
    parser.add_argument("--extra", type=json.loads, default={}, help="further fields of the request, as JSON")
    parser.add_argument("--effort", choices=EFFORTS, default="full", help="requests of a level, and their lengths")
    arguments = parser.parse_args()
    prompts = Prompts(arguments.tokenizer, arguments.text)
    client = Client(arguments.url, arguments.model, prompts, arguments.extra, EFFORTS[arguments.effort])
    print(json.dumps(asyncio.run(client.measure(arguments.levels, arguments.prefill))))


if __name__ == "__main__":
    main()
