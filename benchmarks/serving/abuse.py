"""What must not harm the server: signals under load, clients that are killed, requests made up to break it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

from .bodies import raw_requests, requests
from .load import Load, run_load
from .process import Served, darl_rerank, served

TINY = ("--engine", "torch", "--device", "cpu", "--precision", "float32")
# Two threads of a model this small wait for each other more than they work.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A request that hypothesis makes up may ask for anything, so any of these is right; all but 200 carry an error.
RIGHT = {200, 400, 401, 404, 405, 408, 413, 415, 422, 429}
_HANG_UPS = 1000
_RAW = 1000
_KILLED_CLIENT = """
import socket, sys, time
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
print("sent", flush=True)
time.sleep(60)
"""


class Watch:
    """Looks at a server every quarter of a second: its queue, memory, open files and threads."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.queue_tokens: list[float] = []
        self.memory_mib: list[float] = []
        self.files: list[int] = []
        self.threads: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            self.look()

    def look(self) -> None:
        process = Path(f"/proc/{self.server.process.pid}")
        self.queue_tokens.append(self.server.metric("darl_queue_tokens"))
        self.memory_mib.append(self.server.memory_mib())
        self.files.append(len(os.listdir(process / "fd")))
        self.threads.append(len(os.listdir(process / "task")))


def term(tiny: Path, asked: list[dict[str, Any]], times: int = 10) -> dict[str, Any]:
    """SIGTERM at a random moment under load: what the clients got beside what the server says that it sent."""
    rows = []
    for number in range(times):
        with served(darl_rerank(tiny, *TINY), ONE_THREAD) as server:
            server.wait_until_ready()
            found: dict[str, Any] = {}
            load = Load(server.port, "/rerank", asked, 32, 6)
            thread = threading.Thread(target=lambda found=found, load=load: found.update(run_load(load)))
            thread.start()
            time.sleep(2 + random.Random(number).random())
            code = server.terminate()
            thread.join()
            logged = Counter(str(line["status"]) for line in server.log_lines() if line.get("path") == "/rerank")
        # Without an answer: sent when nobody listened any more, so never accepted.
        rows.append({"exit": code, "clients": found["statuses"], "server": dict(logged)})
        click.echo(rows[-1])
    whole = all(row["exit"] == 0 and all(row["clients"].get(s) == n for s, n in row["server"].items()) for row in rows)
    return {"rows": rows, "every_accepted_request_answered": whole}


def hang_up(tiny: Path, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Clients killed with SIGKILL while their request waits or runs."""
    long = {"query": asked[0]["query"], "documents": [d for body in asked for d in body["documents"]]}
    data = json.dumps(long).encode()
    request = f"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    with served(darl_rerank(tiny, *TINY), ONE_THREAD) as server:
        server.wait_until_ready()
        watch = Watch(server)
        for number in range(_HANG_UPS):
            client = subprocess.Popen(
                [sys.executable, "-S", "-c", _KILLED_CLIENT, str(server.port)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(request)
            client.stdin.close()
            client.stdout.readline()
            time.sleep(random.Random(number).random() * 0.05)
            client.send_signal(signal.SIGKILL)
            client.wait()
            client.stdout.close()
            if number % 50 == 49:
                settle(server, number + 1)
                watch.look()
        statuses = Counter(str(line["status"]) for line in server.log_lines() if line.get("path") == "/rerank")
        alive = server.post("/rerank", asked[0])[0] == 200
    return {
        "clients": _HANG_UPS, "statuses": dict(statuses), "alive": alive, "queue_tokens": watch.queue_tokens,
        "memory_mib": watch.memory_mib, "files": watch.files, "threads": watch.threads,
    }  # fmt: skip


def settle(server: Served, requests: int) -> None:
    """Wait until the server is through with so many requests."""
    end = time.monotonic() + 60
    while server.metric("darl_e2e_request_latency_seconds_count") < requests:
        assert time.monotonic() < end, "the server is not through after a minute"
        time.sleep(0.02)


def fuzz(tiny: Path, bodies: int = 10_000) -> dict[str, Any]:
    """Made-up requests; each answer is checked."""
    with served(darl_rerank(tiny, *TINY, "--max-body-mib", "4"), ONE_THREAD) as server:
        server.wait_until_ready()
        statuses = check_requests(server, bodies)
        raw = check_raw_requests(server, _RAW)
        log = server.log.read_text("utf-8")
        alive = server.post("/rerank", {"query": "q", "documents": ["a"]})[0] == 200
        code = server.terminate()
    return {
        "requests": sum(statuses.values()), "statuses": dict(statuses), "raw_requests": sum(raw.values()),
        "raw_statuses": dict(raw), "tracebacks": log.count("Traceback"), "alive": alive, "exit": code,
    }  # fmt: skip


def check_requests(server: Served, count: int) -> Counter[str]:
    """Statuses of so many made-up requests.

    Raises:
        AssertionError: an answer is not what it should be.
    """
    statuses: Counter[str] = Counter()

    @seed(29)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(requests())
    def ask(request: tuple[str, str, bytes, dict[str, str]]) -> None:
        method, path, body, headers = request
        status, found, values = server.call(method, path, body, headers)
        statuses[str(status)] += 1
        assert status in RIGHT, (status, values)
        if status != 200:
            assert found["content-type"] == "application/json"
            assert "message" in values, values

    ask()
    return statuses


def check_raw_requests(server: Served, count: int) -> Counter[str]:
    """Statuses of so many made-up requests that are hardly HTTP; "none" if the connection just ends."""
    statuses: Counter[str] = Counter()

    @seed(29)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(raw_requests())
    def ask(text: bytes) -> None:
        answer = server.raw(text)
        found = re.findall(rb"HTTP/1\.1 (\d+)", answer)
        statuses[found[0].decode() if found else "none"] += 1
        assert all(int(status) < 500 for status in found), (text, answer)
        assert b"Traceback" not in answer

    ask()
    return statuses
