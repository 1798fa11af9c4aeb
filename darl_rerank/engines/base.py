"""The Engine protocol, and the loop that drives any engine over query groups."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DarlRerankError, InputError
from ..model.exits import Exits
from ..model.prompt import PromptGroup
from .batching import MicroBatch, halves, plan


class OutOfMemoryError(DarlRerankError):
    """The device has no memory left for a micro-batch."""


@dataclass(frozen=True, slots=True)
class GradeOutput:
    """What an engine computes for n sequences.

    Attributes:
        logits: grade logits before calibration, whose softmax is the model's distribution over the grades (see
            `darl_rerank.model.head.grade_logits`), shape (n, K), float32.
        features: novelty features, shape (n, F) with F three times the hidden size, float32, or None if not asked for:
            the L2-normalised mean of the middle layer's states over the pair's own tokens (all but the instruction),
            the last token's state there, and the last token's final state, each of hidden size. NaN in the parts
            that a sequence left before.
        exit_layers: behind which layer each sequence left early, whose exit its logits are then of; 0 for one that was
            run whole, shape (n,); None where nothing can leave.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None
    exit_layers: NDArray[np.intp] | None = None


class Engine(Protocol):
    """What runs the network. An engine is thread-safe and keeps nothing between calls.

    Attributes:
        name: "torch" or "onnx".
        device: "cpu", "cuda", "cuda:1" …
        precision: number format of the network's body, e.g. "float32", "bfloat16", "int8".
        batch_tokens: the token budget of a micro-batch that suits engine and device.
        exits: by which sequences leave early; None if all are run whole.
    """

    name: str
    device: str
    precision: str
    batch_tokens: int
    exits: Exits | None

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        """Run a prefix once; what comes back is passed to `grade` with the micro-batches that share it."""
        ...

    def grade(self, batch: MicroBatch, prefix: Any | None, *, features: bool) -> GradeOutput:
        """Logits (and features) of the batch's sequences, in their order.

        Raises:
            OutOfMemoryError: the batch does not fit into the device's memory.
        """
        ...


def grade_groups(
    engine: Engine,
    groups: Sequence[PromptGroup],
    *,
    grades: int,
    features: bool = False,
    batch_tokens: int | None = None,
    share_prefix: bool = True,
) -> GradeOutput:
    """Run all sequences of `groups` and return their outputs in order (groups one after the other).

    Args:
        engine: what runs the network.
        groups: query groups.
        grades: number of grades K, for the shape of an empty result.
        features: whether to compute novelty features.
        batch_tokens: token budget of a micro-batch; the engine's own if None.
        share_prefix: run the prefix of a group once for all its documents.

    Raises:
        OutOfMemoryError: half a micro-batch does not fit into the device's memory either.
        InputError: logits that are not finite; the message names query and document.
    """
    distinct, places = _without_repeats(groups)
    count = sum(len(group.suffixes) for group in distinct)
    logits = np.zeros((count, grades), dtype=np.float32)
    collected: NDArray[np.float32] | None = None
    exit_layers: NDArray[np.intp] | None = None
    prefix_ids: tuple[int, ...] = ()
    prefix: Any = None
    for batch in plan(distinct, batch_tokens or engine.batch_tokens, share_prefix=share_prefix):
        if batch.prefix != prefix_ids:
            prefix_ids = batch.prefix
            prefix = engine.encode_prefix(prefix_ids) if prefix_ids else None
        for part, output in _graded(engine, batch, prefix, features):
            where = list(part.positions)
            logits[where] = output.logits
            if output.features is not None:
                if collected is None:
                    collected = np.zeros((count, output.features.shape[1]), dtype=np.float32)
                collected[where] = output.features
            if output.exit_layers is not None:
                if exit_layers is None:
                    exit_layers = np.zeros(count, dtype=np.intp)
                exit_layers[where] = output.exit_layers
    _check_finite(groups, logits[places], engine)
    return GradeOutput(
        logits[places],
        None if collected is None else collected[places],
        None if exit_layers is None else exit_layers[places],
    )


def _graded(engine: Engine, batch: MicroBatch, prefix: Any, features: bool) -> list[tuple[MicroBatch, GradeOutput]]:
    """The batch's outputs: in one piece, or in two halves where the device's memory does not suffice for one."""
    try:
        return [(batch, engine.grade(batch, prefix, features=features))]
    except OutOfMemoryError:
        if len(batch.sequences) == 1:
            raise
    # Outside the handler: the exception's traceback would hold on to the failed run's memory.
    tokens = len(batch.sequences) * len(batch.sequences[0])
    warnings.warn(
        f"{engine.device} has no memory for a batch of {len(batch.sequences)} sequences ({tokens} tokens), so it is "
        f"run in two halves; with batch_tokens={max(1, tokens // 2)} that is not tried again",
        RuntimeWarning,
        stacklevel=3,
    )
    return [(part, engine.grade(part, prefix, features=features)) for part in halves(batch)]


def _check_finite(groups: Sequence[PromptGroup], logits: NDArray[np.float32], engine: Engine) -> None:
    # Such scores would be written to runs and journals that nothing can read again.
    rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if not len(rows):
        return
    left = int(rows[0])
    for group in groups:
        if left < len(group.owners):
            raise InputError(
                f"query {group.query!r}, document {group.owners[left]}: the model's logits are not finite numbers "
                f"({len(rows)} of {len(logits)} sequences; {engine.name} engine, {engine.precision}): its weights are "
                "damaged, or its values exceed this precision"
            )
        left -= len(group.owners)


def _without_repeats(groups: Sequence[PromptGroup]) -> tuple[list[PromptGroup], NDArray[np.intp]]:
    """The groups with each suffix once, and for every original sequence its place among those that are left.

    Equal documents must get equal scores, or their order would be one of rounding; two rows of one matrix product
    need not be equal in their last bits even where their inputs are.
    """
    distinct: list[PromptGroup] = []
    places: list[int] = []
    offset = 0
    for group in groups:
        first: dict[tuple[int, ...], int] = {}
        for suffix in group.suffixes:
            places.append(offset + first.setdefault(suffix, len(first)))
        distinct.append(replace(group, suffixes=tuple(first)))
        offset += len(first)
    return distinct, np.array(places, dtype=np.intp)
