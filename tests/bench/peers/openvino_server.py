"""OpenVINO GenAI behind the part of the completions API that the load client speaks.

    openvino_server.py --model FILE.gguf --tokenizer tokenizer.json --port N --streams N --kv-tokens N --threads N

OpenVINO GenAI has no server of its own. One thread steps its continuous batching and hands each token to the connection that
waits for it; the rest is an asyncio server of the standard library, so that what is measured is the engine.
"""

import argparse
import asyncio
import json
import queue
import threading

import numpy
import openvino
import openvino_genai
import tokenizers

# What OpenVINO's CPU plugin makes blocks of.
BLOCK_TOKENS = 32


class Engine:
    """The pipeline and the thread that steps it; the only one that touches it."""

    def __init__(self, arguments, loop):
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = -(-arguments.kv_tokens // BLOCK_TOKENS)
        scheduler.max_num_seqs = arguments.streams
        scheduler.max_num_batched_tokens = 2048
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": arguments.threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(arguments.model), scheduler, "CPU", properties)
        self.loop = loop
        self.arriving = queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def generate(self, ids, most_tokens):
        """A queue that gets lists of token ids, and none when it is over."""
        tokens = asyncio.Queue()
        self.arriving.put((ids, most_tokens, tokens))
        return tokens

    def work(self):
        number, handles = 0, {}
        while True:
            # Sleeps only while there is nothing to compute.
            while not handles or not self.arriving.empty():
                ids, most_tokens, tokens = self.arriving.get()
                handles[number] = (self.add(number, ids, most_tokens), tokens)
                number += 1
            if self.pipeline.has_non_finished_requests():
                self.pipeline.step()
            news = [item for key in list(handles) for item in self.news(handles, key)]
            if news:
                self.loop.call_soon_threadsafe(lambda news=news: [tokens.put_nowait(ids) for tokens, ids in news])

    def add(self, number, ids, most_tokens):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = most_tokens, True, False
        return self.pipeline.add_request(number, openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config)

    @staticmethod
    def news(handles, key):
        """What a request has got since it was last asked, as (queue, ids); it leaves `handles` when it is over."""
        handle, tokens = handles[key]
        # Before what it has to read: a request that is over then says no more.
        over = handle.get_status() != openvino_genai.GenerationStatus.RUNNING
        while handle.can_read():
            for output in handle.read().values():
                yield tokens, list(output.generated_ids)
        if over:
            del handles[key]
            yield tokens, None


def chunk(body):
    return b"%x\r\n%s\r\n" % (len(body), body)


def event(text, reason=None, usage=None):
    data = {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}
    return chunk(b"data: " + json.dumps({**data, "usage": usage} if usage else data).encode() + b"\n\n")


class Server:
    def __init__(self, engine, tokenizer):
        self.engine, self.tokenizer = engine, tokenizer

    async def connection(self, reader, writer):
        try:
            method, target, _ = (await reader.readline()).decode("latin-1").split(" ", 2)
            length = 0
            while (line := await reader.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                length = int(value) if name.lower() == "content-length" else length
            body = await reader.readexactly(length)
            if (method, target) == ("POST", "/v1/completions"):
                await self.complete(json.loads(body), writer)
            else:
                status = "200 OK" if target == "/health" else "404 Not Found"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass  # Whoever asked is gone, or speaks something else.
        finally:
            writer.close()

    async def complete(self, request, writer):
        """A greedy streaming completion. A chunk carries one token, with the text that has become whole by it."""
        ids = self.tokenizer.encode(request["prompt"], add_special_tokens=False).ids
        tokens = self.engine.generate(ids, request.get("max_tokens", 16))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
                     b"Connection: close\r\n\r\n")
        count, held = 0, []
        while (fresh := await tokens.get()) is not None:
            for token in fresh:
                count, held = count + 1, held + [token]
                text = self.tokenizer.decode(held, skip_special_tokens=False)
                if text.endswith("\ufffd") and len(held) < 4:
                    text = ""  # Inside a character.
                else:
                    held = []
                writer.write(event(text))
            await writer.drain()
        usage = {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
        writer.write(event("", "length", usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


async def serve(arguments):
    engine = Engine(arguments, asyncio.get_running_loop())
    handler = Server(engine, tokenizers.Tokenizer.from_file(arguments.tokenizer))
    server = await asyncio.start_server(handler.connection, "127.0.0.1", arguments.port)
    async with server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("model", str), ("tokenizer", str), ("port", int), ("streams", int), ("kv-tokens", int), ("threads", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
