"""The model that every worker loads, and the proof that it is the same one everywhere."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.shipped import DEFAULT
from ..reranker import Reranker


@dataclass(frozen=True, slots=True)
class Model:
    """What `Reranker.from_pretrained` is called with on a worker.

    Attributes:
        name: a folder, the name of a checkpoint that ships, or a hub id; None for the default.
        options: further arguments.
        checkpoint: fingerprint of the checkpoint, if it is known.
        fingerprint: of the reranker, engine and precision included, if it is known.
        version: of the package.
    """

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    fingerprint: str | None = None
    version: str = __version__

    def check(self) -> None:
        """Raise InputError if this process has another version of the package or finds another checkpoint."""
        if self.version != __version__:
            raise InputError(
                f"{_here()} has darl-rerank {__version__}, expected {self.version}: install the same version everywhere"
            )
        found = Checkpoint.load(DEFAULT if self.name is None else self.name).fingerprint
        if self.checkpoint not in (None, found):
            raise InputError(
                f"{_here()} finds another checkpoint at {self.name or DEFAULT}: fingerprint {found[:12]}, expected "
                f"{str(self.checkpoint)[:12]}"
            )

    def load(self) -> Reranker:
        """The reranker.

        Raises:
            InputError: as `check`, or this process runs the model with another engine or in another precision.
            DarlRerankError: as `Reranker.from_pretrained`.
        """
        self.check()
        reranker = Reranker.from_pretrained(self.name, **self.options)
        if self.fingerprint not in (None, reranker.fingerprint):
            raise InputError(
                f"{_here()} runs the model as {_engine(reranker.fingerprint)}, another as {_engine(self.fingerprint)}: "
                "give --engine, --device and --precision that all nodes have"
            )
        return reranker


def _here() -> str:
    """This process in an error. Its host's name says little where hosts are containers, so the address is with it."""
    import ray

    address = f" ({ray.util.get_node_ip_address()})" if ray.is_initialized() else ""
    return f"a worker on {socket.gethostname()}{address}"


def _engine(fingerprint: str | None) -> str:
    """Engine, precision and treatment of long documents out of a reranker's fingerprint."""
    return str(fingerprint).partition("/")[2]
