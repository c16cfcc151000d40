"""What a server does when clients leave, stall, flood or stop it: counted and timed against ``draftsmith serve``.

    python -m benchmarks.faults [--target REF] [--draft REF] [--requests 20000] [--record faults]

Six faults one after the other: clients that leave in the middle of a stream; ten times as many requests as the queue
holds; health checks while a long prompt is read; connections that never finish their header; many short requests,
watching memory; and SIGTERM in the middle of replies. The exit code is 1 when one of the limits is not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.common import add_record_option, report, run_script, table

PATIENCE_S = 900.0  # a prompt of 32,000 tokens takes minutes to read
Check = tuple[str, str, str, bool]  # what, measured, limit, kept


class Served:
    """A server process and raw requests to it."""

    def __init__(self, target: str, draft: str, *, waiting: int = 64) -> None:
        options = ["--target", target, "--draft", draft, "--port", "0", "--max-waiting", str(waiting)]
        command = [sys.executable, "-m", "draftsmith", "serve", *options, "--quiet", "--no-access-log"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.partition("127.0.0.1:")[2].split(",")[0])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)

    async def send(self, path: str, body: Any = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A request; its answer is not read yet."""
        reader, writer = await self.connect()
        data = json.dumps(body).encode() if body is not None else b""
        method = "POST" if body is not None else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if body is not None else ""
        writer.write((head + kind + "\r\n").encode() + data)
        await writer.drain()
        return reader, writer

    async def call(self, path: str, body: Any = None) -> tuple[int, bytes, float]:
        """Status, body and seconds."""
        began = time.perf_counter()
        reader, writer = await self.send(path, body)
        answer = await asyncio.wait_for(reader.read(-1), PATIENCE_S)
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]) if head else 0, rest, time.perf_counter() - began

    async def gauge(self, name: str) -> float:
        """The value of a metric."""
        page = (await self.call("/metrics"))[1].decode()
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"vllm:{name}{{"))

    def memory_mb(self) -> float:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * 4096 / 1e6


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A request."""
    return {"messages": [{"role": "user", "content": text}], "seed": 1, **fields}


async def disconnects(server: Served, count: int) -> list[Check]:
    """Clients that leave once the first part of a stream is there."""
    before = await server.gauge("kv_cache_bytes")
    for number in range(count):
        reader, writer = await server.send("/v1/chat/completions", chat("Tell a long story.", stream=True, seed=number))
        await reader.read(200)
        writer.transport.abort()
    began = time.perf_counter()
    while await server.gauge("num_requests_running") + await server.gauge("num_requests_waiting"):
        await asyncio.sleep(0.01)
    freed = time.perf_counter() - began
    await server.call("/v1/chat/completions", chat("Tell a long story.", max_tokens=1))
    grown = (await server.gauge("kv_cache_bytes") - before) / 1e6
    return [
        (f"{count} clients leave mid-stream: places free after", f"{freed:.2f} s", "2 s", freed <= 2),
        ("keys and values kept for prompts that begin alike, afterwards", f"{grown:+.1f} MB", "", True),
    ]


async def overload(server: Served, waiting: int) -> list[Check]:
    """Ten times as many requests as may wait: at once, and spread over two seconds."""
    checks: list[Check] = []
    for seconds, limit in ((0.0, None), (2.0, 0.1)):
        count = 10 * waiting
        answers = await asyncio.gather(*[_later(server, seconds * i / count) for i in range(count)])
        statuses = Counter(status for status, _, _ in answers)
        refused = sorted(spent for status, _, spent in answers if status == 503) or [float("inf")]
        lost = sum(1 for status, body, _ in answers if status == 200 and b'"finish_reason"' not in body)
        how = f"over {seconds:.0f} s" if seconds else "all connecting at once"
        middle, slowest = f"{refused[len(refused) // 2] * 1e3:.0f}", f"{refused[-1] * 1e3:.0f}"
        checks += [
            (f"{count} requests, {how}", f"{dict(statuses)}", "200 or 503", not set(statuses) - {200, 503}),
            ("accepted and lost", str(lost), "0", lost == 0),
            (
                "median and slowest refusal",
                f"{middle} and {slowest} ms",
                "" if limit is None else f"{limit * 1e3:.0f} ms",
                limit is None or refused[-1] <= limit,
            ),
        ]
    alive = [status for status, _, _ in await asyncio.gather(*[server.call("/health") for _ in range(20)])]
    return [*checks, ("health checks afterwards", f"{dict(Counter(alive))}", "200", set(alive) == {200})]


async def _later(server: Served, seconds: float) -> tuple[int, bytes, float]:
    await asyncio.sleep(seconds)
    return await server.call("/v1/chat/completions", chat("Count to ten.", max_tokens=8))


async def single_refusals(server: Served, waiting: int) -> list[Check]:
    """With the queue full, one request after the other is turned away."""
    long = chat("Tell a long story.", ignore_eos=True, max_tokens=400, stream=True)
    open_ones = []
    while await server.gauge("num_requests_waiting") < waiting:  # or the first of ours would find room, and wait
        open_ones.append(await server.send("/v1/chat/completions", long))
    times = [await server.call("/v1/chat/completions", chat("Hi.", max_tokens=1)) for _ in range(50)]
    for _, writer in open_ones:
        writer.transport.abort()
    while await server.gauge("num_requests_running") + await server.gauge("num_requests_waiting"):
        await asyncio.sleep(0.05)
    refused = sorted(seconds for status, _, seconds in times if status == 503)
    worst = refused[-1] if refused else float("inf")
    return [("50 refusals with a full queue, the slowest", f"{worst * 1e3:.0f} ms", "100 ms", worst <= 0.1)]


async def health(server: Served, tokens: int) -> list[Check]:
    """Health checks while a prompt of about ``tokens`` tokens is read."""
    per_hundred = json.loads((await server.call("/tokenize", {"prompt": "word " * 100}))[1])["count"]
    prompt = "word " * (tokens * 100 // per_hundred)
    reading = asyncio.ensure_future(server.call("/v1/completions", {"prompt": prompt, "max_tokens": 1}))
    times: list[float] = []
    while not reading.done() or len(times) < 20:
        times.append((await server.call("/health"))[2])
        await asyncio.sleep(0.02)
    status, _, seconds = await reading
    p99 = sorted(times)[int(len(times) * 0.99)]
    what = f"/health p99 while {tokens} tokens are read ({seconds:.1f} s, status {status}, {len(times)} checks)"
    return [(what, f"{p99 * 1e3:.0f} ms", "100 ms", p99 <= 0.1)]


async def half_open(server: Served, count: int) -> list[Check]:
    """Connections that send half a header and wait."""
    began = time.perf_counter()
    connections = [await server.connect() for _ in range(count)]
    for _, writer in connections:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: local")
    status, _, seconds = await server.call("/v1/chat/completions", chat("Hi.", max_tokens=4))
    await asyncio.gather(*[_closed(reader) for reader, _ in connections])
    closed = time.perf_counter() - began
    for _, writer in connections:
        writer.close()
    return [
        (f"a request beside {count} half-open connections", f"{status} in {seconds:.2f} s", "1 s", seconds < 1),
        ("all of them closed after", f"{closed:.1f} s", "10 s", closed <= 10),
    ]


async def _closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(-1), PATIENCE_S)


async def soak(server: Served, count: int) -> list[Check]:
    """Short requests, 16 at once. Caches of texts fill up to their bounds at first; then memory is to stay as it is."""
    marks: list[float] = []
    statuses: Counter[int] = Counter()
    began = time.perf_counter()
    for start in range(0, count, 16):
        bodies = [chat(f"Say {number}.", max_tokens=4, seed=number) for number in range(start, min(start + 16, count))]
        for status, _, _ in await asyncio.gather(*[server.call("/v1/chat/completions", one) for one in bodies]):
            statuses[status] += 1
        marks.append(server.memory_mb())
    seconds = time.perf_counter() - began
    told = [marks[min(len(marks) - 1, len(marks) * part // 100)] for part in (10, 25, 50, 75, 100)]
    grown = told[-1] - told[2]
    what = (
        f"{count} short requests in {seconds:.0f} s, {dict(statuses)}: resident memory after 10, 25, 50, 75 and 100 %"
    )
    measured = f"{', '.join(f'{mark:.1f}' for mark in told)} MB"
    return [(what, measured, "+ 1 % in the second half", grown <= 0.01 * told[2])]


async def drain(server: Served) -> list[Check]:
    """SIGTERM in the middle of 8 replies."""
    body = chat("Tell a story.", max_tokens=60, ignore_eos=True, stream=True)
    streams = [await server.send("/v1/chat/completions", body) for _ in range(8)]
    for reader, _ in streams:
        await reader.read(100)
    began = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    rest = [await asyncio.wait_for(reader.read(-1), PATIENCE_S) for reader, _ in streams]
    for _, writer in streams:
        writer.close()
    code = await asyncio.to_thread(server.process.wait, PATIENCE_S)
    whole = sum(b"[DONE]" in one for one in rest)
    seconds = time.perf_counter() - began
    measured, kept = f"{whole}, {code}, {seconds:.1f}", whole == 8 and code == 0
    return [("SIGTERM during 8 replies: whole, exit code, seconds", measured, "8, 0", kept)]


FAULTS: dict[str, Callable[[Served, argparse.Namespace], Awaitable[list[Check]]]] = {
    "disconnects": lambda server, _: disconnects(server, 200),
    "overload": lambda server, _: overload(server, 64),
    "refusals": lambda server, _: single_refusals(server, 64),
    "health": lambda server, asked: health(server, asked.prompt_tokens),
    "half-open": lambda server, _: half_open(server, 200),
    "soak": lambda server, asked: soak(server, asked.requests),
    "drain": lambda server, _: drain(server),
}


async def run_all(arguments: argparse.Namespace) -> list[Check]:
    """The faults that were asked for, against one server."""
    server = Served(arguments.target, arguments.draft)
    try:
        checks: list[Check] = []
        for name in arguments.faults.split(","):
            for check in await FAULTS[name](server, arguments):
                print(*check, file=sys.stderr)
                checks.append(check)
        return checks
    finally:
        server.process.kill()
        server.process.wait()


def main() -> int:
    """Print the table and the JSON line; exit code 1 when a limit was not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="the model to serve")
    parser.add_argument("--draft", default="lookup", help="its drafter")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which of them, comma-separated")
    parser.add_argument("--requests", type=int, default=20_000, help="short requests of the soak")
    parser.add_argument("--prompt-tokens", type=int, default=7_900, help="length of the prompt during health checks")
    add_record_option(parser)
    arguments = parser.parse_args()
    checks = asyncio.run(run_all(arguments))
    rows = [[what, measured, limit, "yes" if kept else "NO"] for what, measured, limit, kept in checks]
    result = {"checks": [dict(zip(("what", "measured", "limit", "kept"), check, strict=True)) for check in checks]}
    report("Faults", [table(["fault", "measured", "limit", "kept"], rows)], result, arguments.record)
    return 0 if all(kept for *_, kept in checks) else 1


if __name__ == "__main__":
    run_script(main)
