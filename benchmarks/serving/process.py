"""A server in a process of its own, on a free port of the loopback address."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_START_SECONDS = 300.0


@dataclass
class Served:
    """A running server.

    Attributes:
        process: the process.
        port: of 127.0.0.1.
        log: what it writes to stderr.
        started: when it was started (`time.monotonic`).
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers in lower case, and the JSON (or text) of one request; `body` is bytes, or made into JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, dict(headers or {}))
            answer = connection.getresponse()
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return answer.status, found, json.loads(text) if is_json else text
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        status, _, values = self.call("POST", path, body, headers)
        return status, values

    def raw(self, request: bytes, seconds: float = 0.5) -> bytes:
        """What comes back for bytes that need not be HTTP, until the server ends it or is silent so long."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            answer = b""
            with contextlib.suppress(OSError):
                connection.sendall(request)
                while chunk := connection.recv(65536):
                    answer += chunk
            return answer

    def wait_until_ready(self) -> float:
        """Seconds from the start of the process to ready."""
        while time.monotonic() - self.started < _START_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                if self.call("GET", "/ready")[0] == 200:
                    return time.monotonic() - self.started
            time.sleep(0.02)
        raise RuntimeError(f"not ready after {_START_SECONDS:.0f} s: {self.log.read_text()[-2000:]}")

    def metric(self, name: str) -> float:
        """A metric without labels, or the sum over its labels."""
        lines = str(self.call("GET", "/metrics")[2]).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def log_lines(self) -> list[dict[str, Any]]:
        """What it has logged as JSON so far."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]

    def memory_mib(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def cpu_seconds(self) -> float:
        """Seconds of the processor that it has used so far, in all of its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self, seconds: float = 60.0) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def served(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """A server, whatever writes "listens on http://127.0.0.1:PORT" to stderr; ended when the block ends."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        begun = time.monotonic()
        # A session of its own, so that what the server has started ends with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}, start_new_session=True
        )
        try:
            yield Served(process, _port(process, log), Path(log.name), begun)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def darl_rerank(model: Path | str, *options: str) -> list[str]:
    """The command that serves a model on a free port."""
    return [sys.executable, "-m", "darl_rerank.cli", "serve", str(model), "--port", "0", *options]


def _port(process: subprocess.Popen[bytes], log: IO[bytes]) -> int:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        text = Path(log.name).read_text("utf-8")
        if "listens on http://127.0.0.1:" in text:
            return int(text.split("listens on http://127.0.0.1:")[1].split()[0])
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {text[-2000:]}")
        time.sleep(0.02)
    raise RuntimeError("the server did not start")


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def say(port: int) -> None:
    """What `served` waits for."""
    print(f"listens on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
