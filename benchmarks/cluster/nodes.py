"""A Ray cluster on one machine: the head and every node in a network namespace of its own, on one bridge.

Namespaces have addresses, ports and processes of their own, so a killed node goes as a machine goes. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_BRIDGE = "darlbr"
_NET = "10.231.7"
_PORT = 6399
_OBJECT_STORE = 200_000_000
# One CPU each, and processes that are killed need no dashboard, statistics or core dumps.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


class Nodes:
    """The head, number 0, which has no CPU, and nodes 1, 2, … with as many as they were started with."""

    address = f"{_NET}.1:{_PORT}"

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**os.environ, **_ENVIRONMENT, **environment, "RAY_AUTH_MODE": "token"}
        self._environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        self._made: list[int] = []

    def add_host(self, number: int) -> None:
        """Make a host if it is not there, without a node of Ray on it."""
        if number in self._made:
            return
        if not self._made:
            _ip("link", "add", _BRIDGE, "type", "bridge")
            _ip("link", "set", _BRIDGE, "up")
        name, outside, inside = _name(number), f"darlv{number}", self.interface(number)
        _ip("netns", "add", name)
        self._made.append(number)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("link", "set", outside, "master", _BRIDGE, "up")
        for words in (["addr", "add", f"{self.ip(number)}/24", "dev", inside], ["link", "set", inside, "up"],
                      ["link", "set", "lo", "up"]):  # fmt: skip
            _ip("-n", name, *words)

    def start(self, number: int, cpus: int, mounts: Sequence[tuple[Path, Path]] = ()) -> None:
        """Start a node, or start one again that was killed; it alone sees the first of each pair at the second."""
        self.add_host(number)
        place = [f"--node-ip-address={self.ip(number)}", f"--num-cpus={cpus}"]
        role = (
            ["--head", f"--port={_PORT}", "--include-dashboard=false"] if number == 0 else [f"--address={self.address}"]
        )
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", *role, *place, f"--object-store-memory={_OBJECT_STORE}"]
        # `ip netns exec` gives its command mounts of its own.
        shown = "".join(f"mount --bind {source} {target} && " for source, target in mounts)
        self.run(number, ["sh", "-c", f"{shown}exec {shlex.join(words)}"] if mounts else words)

    def ip(self, number: int) -> str:
        """The address of a host."""
        return f"{_NET}.{number + 1}"

    def interface(self, number: int) -> str:
        """The name of its network interface."""
        return f"darlw{number}"

    def command(self, number: int, words: Sequence[str]) -> list[str]:
        """A command line that runs on a node."""
        return ["ip", "netns", "exec", _name(number), *words]

    def popen(self, number: int, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command on a node."""
        return subprocess.Popen(
            self.command(number, words), env=self._environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, number: int, words: Sequence[str], *, seconds: float = 600) -> str:
        """Run a command on a node; its standard output."""
        ended = subprocess.run(
            self.command(number, words), env=self._environment, text=True, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"{' '.join(words)}: {ended.stdout[-2000:]}{ended.stderr[-3000:]}")
        return ended.stdout

    def processes(self, number: int, name: str = "") -> list[int]:
        """Ids of a node's processes, or of those whose command line begins so."""
        found = subprocess.run(["ip", "netns", "pids", _name(number)], text=True, capture_output=True, check=True)
        return [int(word) for word in found.stdout.split() if _command_line(int(word)).startswith(name)]

    def kill(self, number: int) -> int:
        """Kill a node as a power cut does; how many processes that were."""
        killed = 0
        while found := self.processes(number):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed += 1
            time.sleep(0.1)
        return killed

    def close(self) -> None:
        """Kill all and take the network down."""
        for number in reversed(self._made):
            self.kill(number)
            _ip("netns", "del", _name(number))
        _ip("link", "del", _BRIDGE)


@contextlib.contextmanager
def cluster(cpus: Sequence[int], environment: dict[str, str] | None = None) -> Iterator[Nodes]:
    """A head and a node for each number of CPUs, gone when the block ends."""
    nodes = Nodes(environment or {})
    try:
        nodes.start(0, 0)
        for number, count in enumerate(cpus, 1):
            nodes.start(number, count)
        yield nodes
    finally:
        nodes.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _name(number: int) -> str:
    return f"darlnode{number}"


def _command_line(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
