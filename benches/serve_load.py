#!/usr/bin/env python3
"""Load on the example `serve`: many clients that stream at once, and with --unkind some that vanish,
stall and talk nonsense. Every answer is compared with what the bundled model was taught, so that a
token that is lost, doubled or another request's is seen.

    cargo build --release --example serve
    python3 benches/serve_load.py --clients 64 --seconds 60
    python3 benches/serve_load.py --clients 16 --seconds 300 --unkind 16

Needs nothing but Python 3.9 or newer. Ends with status 1 when an answer is wrong, a status is neither
200 nor 429, or the server is not well afterwards.
"""

import argparse
import asyncio
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
KNOWN = json.loads((ROOT / "tests/fixtures/known-answers.json").read_text())
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"x" * 100_000,
]


class Load:
    def __init__(self, port, pid):
        self.port, self.pid = port, pid
        self.times, self.gaps, self.wrong = [], [], []
        self.answers = self.tokens = self.refused = self.unkind = 0

    def request(self, known, **fields):
        question = {"role": "user", "content": f"Explain {known['topic']}."}
        body = {"messages": [question], "temperature": 0, "stream": True, **fields}
        body = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + body

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)

    async def get(self, path):
        reader, writer = await self.connect()
        head = f"GET {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        text = (await reader.read()).decode()
        writer.close()
        return text

    async def ask(self, known):
        """One answer. False when there was no room for it."""
        started = time.monotonic()
        reader, writer = await self.connect()
        writer.write(self.request(known))
        status = int((await reader.readline()).split()[1])
        if status != 200:
            writer.close()
            if status == 429:
                self.refused += 1
                return False
            self.wrong.append(f"status {status}")
            return True
        text, usage, last, done = "", None, None, False
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
                continue
            now = time.monotonic()
            chunk = json.loads(line[6:])
            if "error" in chunk:
                self.wrong.append(str(chunk))
                break
            usage = chunk["usage"] or usage
            if chunk["choices"] and chunk["choices"][0]["delta"].get("role") is None:
                if last is None:
                    self.times.append(now - started)
                else:
                    self.gaps.append(now - last)
                last = now
                text += chunk["choices"][0]["delta"].get("content", "")
        writer.close()
        if not done or text != known["answer"]:
            self.wrong.append(f"{known['topic']}: {text!r}")
        self.answers += 1
        self.tokens += usage["completion_tokens"] if usage else 0
        return True

    async def client(self, end):
        while time.monotonic() < end:
            if not await self.ask(random.choice(KNOWN)):
                await asyncio.sleep(random.uniform(0.5, 1.5))

    async def misbehave(self, end):
        endless = {"max_tokens": 100_000, "logit_bias": {"2040": -100, "2041": -100, "2047": -100}}
        while time.monotonic() < end:
            self.unkind += 1
            try:
                reader, writer = await self.connect()
                request = self.request(random.choice(KNOWN), **random.choice([{}, endless]))
                way = random.randrange(5)
                if way == 0:
                    writer.write(random.choice(GARBAGE))
                elif way == 1:
                    writer.write(request[: random.randrange(len(request))])
                elif way > 2:
                    writer.write(request)
                # Some read, some do not.
                pause = random.uniform(0, 2)
                if way == 4:
                    await asyncio.sleep(pause)
                else:
                    await asyncio.wait_for(reader.read(random.randrange(1, 20_000)), pause + 0.01)
                if random.random() < 0.5:
                    writer.transport.abort()
                else:
                    writer.close()
            except (OSError, asyncio.TimeoutError):
                writer.transport.abort()

    def resident(self):
        """MB of the process, where /proc says so."""
        try:
            status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0.0
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    async def metric(self, name):
        text = await self.get("/metrics")
        [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
        return int(float(line.split()[1]))

    async def watch(self, end, seen):
        while time.monotonic() < end:
            seen.append((self.resident(), await self.metric("gpt_oss_active_memory_bytes") / 1e6))
            await asyncio.sleep(1)

    async def settle(self):
        for _ in range(600):
            running = await self.metric("gpt_oss_requests_running")
            if running + await self.metric("gpt_oss_requests_waiting") == 0:
                return
            await asyncio.sleep(0.1)
        self.wrong.append("requests go on without their clients")

    async def run(self, args):
        # What is kept of prompts is kept from here on.
        for known in KNOWN:
            while not await self.ask(known):
                pass
        self.times, self.gaps = [], []
        self.answers = self.tokens = 0
        seen, end = [], time.monotonic() + args.seconds
        started = time.monotonic()
        work = [self.client(end) for _ in range(args.clients)]
        work += [self.misbehave(end) for _ in range(args.unkind)]
        await asyncio.gather(*work, self.watch(end, seen))
        seconds = time.monotonic() - started
        answers, tokens = self.answers, self.tokens
        await self.settle()
        await self.ask(KNOWN[0])
        seen.append((self.resident(), await self.metric("gpt_oss_active_memory_bytes") / 1e6))

        print(f"{args.clients} clients, {args.unkind} unkind ones, {seconds:.0f} s")
        print(f"answers {answers}, all as taught: {not self.wrong}; refused with 429: {self.refused}")
        print(f"tokens {tokens}, {tokens / seconds:.0f} per second")
        if len(self.times) > 1:
            for name, times in [("first token", self.times), ("between tokens", self.gaps)]:
                cuts = statistics.quantiles(times, n=100)
                p50, p95, top = cuts[49] * 1e3, cuts[94] * 1e3, max(times) * 1e3
                print(f"{name}: median {p50:.0f} ms, 95 % within {p95:.0f} ms, longest {top:.0f} ms")
        if args.unkind:
            print(f"unkind connections {self.unkind}")
        for i, name in enumerate(["resident", "in MLX arrays"]):
            values = [row[i] for row in seen]
            quarter = values[len(values) // 4]
            print(
                f"MB {name}: {values[0]:.0f} at first, {quarter:.0f} after a quarter, "
                f"{max(values):.0f} at most, {values[-1]:.0f} at the end"
            )
        for wrong in self.wrong[:5]:
            print("wrong:", wrong)
        return not self.wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--serve", default=ROOT / "target/release/examples/serve")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--unkind", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--max-running", default="16")
    args = parser.parse_args()
    command = [args.serve, "--port", "0", "--log", "warn", "--max-running", args.max_running]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().rstrip("/\n").rsplit(":", 1)[1])
        good = asyncio.run(Load(port, server.pid).run(args))
        server.terminate()
        status = server.wait(60)
        print(f"the server ended with status {status}")
    finally:
        server.kill()
    sys.exit(0 if good and status == 0 else 1)


if __name__ == "__main__":
    main()
