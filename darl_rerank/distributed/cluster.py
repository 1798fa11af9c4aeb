"""The Ray cluster: connecting to one that runs, what its nodes have, and its errors in our words."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..errors import DarlRerankError, InputError, MissingDependencyError, OutdatedDependencyError
from .model import Model
from .signals import handlers_kept

log = logging.getLogger(__name__)

# What this was written on. Before 2.54 any web page could run code on a cluster through a browser on its network
# (CVE-2026-27482).
OLDEST = "2.60"
_ANSWER_S = 5.0
_START = "start one with `ray start --head --include-dashboard=false`"


def require_ray() -> None:
    """Raise MissingDependencyError if Ray is not installed or too old."""
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise MissingDependencyError("ray", "ray") from None
    if tuple(map(int, found.split(".")[:2])) < tuple(map(int, OLDEST.split("."))):
        raise OutdatedDependencyError("ray", "ray", found=found, at_least=OLDEST)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of a cluster while the block lasts; of the one this process is connected to, if it is.

    Args:
        address: "host:port" of the head node, "auto" for the cluster that this machine belongs to (or that
            RAY_ADDRESS names), "local" for one of this machine alone that ends with the block.

    Raises:
        InputError: no cluster there.
        DarlRerankError: what went wrong on the cluster while the block lasted.
    """
    require_ray()
    import ray

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    if ray.is_initialized():
        with _quietly():
            yield
        return
    if address.startswith("ray://"):
        raise InputError(
            f"--ray {address}: expected host:port of a cluster that this machine is a node of; from outside, hand the "
            "command in with `ray job submit`"
        )
    # Errors come as exceptions; what Ray's core would write to stderr besides is for its developers.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["include_dashboard"] = False
    elif address != "auto":
        _check_address(address)
    # For a cluster of this machine alone Ray starts eight processes, which takes long where the cores are busy.
    log.info(f"waiting for Ray {'to start on this machine' if address == 'local' else f'(--ray {address})'}")
    try:
        with handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        place = "on this machine" if address == "auto" else f"at {address}"
        raise InputError(f"no Ray cluster {place} ({_first_line(error)}): {_START}") from error
    try:
        with _quietly():
            yield
    finally:
        with handlers_kept():
            ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself tries for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--ray {address}: expected host:port, auto or local")
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address} ({error}): {_START}") from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Ray's errors in our words; what else it has to say goes to stderr, since stdout is for results."""
    import ray

    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DarlRerankError):
            raise cause from None
        raise DarlRerankError(f"a worker failed: {_last_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise DarlRerankError(f"the Ray cluster failed: {_last_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _last_line(error: BaseException) -> str:
    return str(error).strip().rsplit("\n", 1)[-1] or type(error).__name__


@dataclass(frozen=True, slots=True)
class Node:
    """A node that has room for workers, and for how many."""

    id: str
    name: str
    workers: int


def nodes_for(cpus: float, gpus: float) -> list[Node]:
    """The nodes that have room for workers of so many CPUs and GPUs.

    Raises:
        InputError: there is none.
    """
    import ray

    found = []
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        amounts = [has.get(name, 0) / amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount]
        if workers := int(min(amounts, default=0)):
            name = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
            found.append(Node(node["NodeID"], name, workers))
    if not found:
        raise InputError(f"no node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs, which a worker needs")
    return found


def check_nodes(nodes: Sequence[Node], paths: Sequence[str], model: Model) -> None:
    """Raise InputError if a node is not like this one: it has another version of this package, lacks one of `paths` (of
    a shared disk), or finds another checkpoint.
    """

    # A function inside a function travels by value: it runs where another version is installed, or none.
    def look(paths: Sequence[str]) -> tuple[str | None, list[str]]:
        import os
        from importlib.metadata import PackageNotFoundError, version

        try:
            from darl_rerank import __version__ as found
        except ImportError:
            try:
                found = version("darl-rerank")
            except PackageNotFoundError:
                return None, []
        return found, [path for path in paths if not os.path.exists(path)]

    for node, (installed, missing) in _on_each(nodes, look, paths):
        if installed != __version__:
            raise InputError(
                f"{node.name} has {'no darl-rerank' if installed is None else f'darl-rerank {installed}'}, expected "
                f"{__version__} as here: install the same version on all nodes"
            )
        if missing:
            raise InputError(
                f"{node.name} does not see it; inputs, model and output must lie on a disk that all nodes share, or "
                "under a URL", path=missing[0],
            )  # fmt: skip
    for _ in _on_each(nodes, _check, model):
        pass


def _check(model: Model) -> None:
    model.check()


def _on_each(nodes: Sequence[Node], task: Callable[..., Any], *arguments: Any) -> Iterator[tuple[Node, Any]]:
    """What a function returns on each node; a node that dies meanwhile is left out, and does not work for the job."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0)(task)
    running = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*arguments)
        for node in nodes
    ]
    for node, result in zip(nodes, running, strict=True):
        try:
            yield node, ray.get(result)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue


def gpus_per_worker(device: str | None) -> float:
    """What a worker takes: one if the cluster has GPUs and the model may use them, else none."""
    import ray

    return float(device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1)
