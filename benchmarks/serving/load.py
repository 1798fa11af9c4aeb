"""Load on a server, in a process of its own: closed (each client asks again at once) or open (requests at a rate).

Run with a JSON object on standard input (see `Load`); prints a JSON object with what came back. Written on asyncio's
streams, so that 64 clients cost the machine that also runs the server as little as possible.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Load:
    """What is asked of a server.

    Attributes:
        port: of 127.0.0.1.
        path: what is called.
        bodies: JSON objects, asked in turn.
        clients: connections at the same time.
        seconds: how long requests are sent; those on their way are then waited for.
        rate: requests a second, at random times (Poisson); None for closed clients.
        expected: for each body the relevance by document, to compare answers with; empty to compare nothing.
        tolerance: largest difference of a relevance that is no wrong answer.
        seed: of the times.
    """

    port: int
    path: str
    bodies: list[dict[str, Any]]
    clients: int
    seconds: float
    rate: float | None = None
    expected: list[dict[str, float]] = field(default_factory=list)
    tolerance: float = 1e-4
    seed: int = 1


def run_load(load: Load) -> dict[str, Any]:
    """The load, run by a process of its own.

    Returns:
        statuses: answers by status ("lost" for a connection that ended without one); latencies: seconds of each 200,
        from when it was due; pairs: documents of these; seconds: from the first request to the last answer; wrong:
        answers that differ from what is expected; largest_difference: of a relevance.
    """
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())], input=json.dumps(asdict(load)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


class _Client:
    """Connections to one server, and what came back over them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = []
        for body in load.bodies:
            data = json.dumps(body).encode()
            head = f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            self._requests.append(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        self._next = 0
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._free = asyncio.Semaphore(load.clients)
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.pairs = self.wrong = 0
        self.largest_difference = 0.0

    async def ask(self, due: float) -> None:
        number = self._next % len(self._requests)
        self._next += 1
        async with self._free:
            try:
                status, body = await self._call(self._requests[number])
            except (OSError, asyncio.IncompleteReadError):
                self.statuses["lost"] += 1
                return
        self.statuses[str(status)] += 1
        if status == 200:
            self.latencies.append(time.monotonic() - due)
            self.pairs += len(self._load.bodies[number]["documents"])
            if self._load.expected:
                self._compare(json.loads(body), self._load.expected[number])

    def _compare(self, answer: dict[str, Any], expected: dict[str, float]) -> None:
        found = {str(r["index"]): r["relevance_score"] for r in answer["results"]}
        if found.keys() != expected.keys():
            self.wrong += 1
            return
        difference = max(abs(found[index] - value) for index, value in expected.items())
        self.largest_difference = max(self.largest_difference, difference)
        self.wrong += difference > self._load.tolerance

    async def _call(self, request: bytes) -> tuple[int, bytes]:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._load.port)
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            body = await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split()[1]), body


async def _drive(load: Load) -> dict[str, Any]:
    client = _Client(load)
    begun = time.monotonic()
    end = begun + load.seconds

    async def again_and_again() -> None:
        while time.monotonic() < end:
            await client.ask(time.monotonic())

    if load.rate is None:
        await asyncio.gather(*(again_and_again() for _ in range(load.clients)))
    else:
        times, due = random.Random(load.seed), begun
        asked = []
        while (due := due + times.expovariate(load.rate)) < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked.append(asyncio.create_task(client.ask(due)))
        await asyncio.gather(*asked)
    return {
        "statuses": dict(client.statuses),
        "latencies": client.latencies,
        "pairs": client.pairs,
        "seconds": time.monotonic() - begun,
        "wrong": client.wrong,
        "largest_difference": client.largest_difference,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_drive(Load(**json.load(sys.stdin))))))
