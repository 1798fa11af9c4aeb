"""The Engine protocol, and the loop that drives any engine over query groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..model.prompt import PromptGroup
from .batching import MicroBatch, plan


@dataclass(frozen=True, slots=True)
class GradeOutput:
    """What an engine computes for n sequences.

    Attributes:
        logits: grade logits before calibration, shape (n, K), float32.
        features: novelty features, shape (n, F) with F three times the hidden size, float32, or None if not asked for:
            the L2-normalised mean of the middle layer's states over the pair's own tokens (all but the instruction),
            the last token's state there, and the last token's final state, each of hidden size.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None


class Engine(Protocol):
    """What runs the network. An engine is thread-safe and keeps nothing between calls.

    Attributes:
        name: "torch" or "onnx".
        device: "cpu", "cuda", "cuda:1" …
        precision: number format of the network's body, e.g. "float32", "bfloat16", "int8".
        batch_tokens: the token budget of a micro-batch that suits engine and device.
    """

    name: str
    device: str
    precision: str
    batch_tokens: int

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        """Run a prefix once; what comes back is passed to `grade` with the micro-batches that share it."""
        ...

    def grade(self, batch: MicroBatch, prefix: Any | None, *, features: bool) -> GradeOutput:
        """Logits (and features) of the batch's sequences, in their order."""
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
    """
    distinct, places = _without_repeats(groups)
    count = sum(len(group.suffixes) for group in distinct)
    logits = np.zeros((count, grades), dtype=np.float32)
    collected: NDArray[np.float32] | None = None
    prefix_ids: tuple[int, ...] = ()
    prefix: Any = None
    for batch in plan(distinct, batch_tokens or engine.batch_tokens, share_prefix=share_prefix):
        if batch.prefix != prefix_ids:
            prefix_ids = batch.prefix
            prefix = engine.encode_prefix(prefix_ids) if prefix_ids else None
        output = engine.grade(batch, prefix, features=features)
        where = list(batch.positions)
        logits[where] = output.logits
        if output.features is not None:
            if collected is None:
                collected = np.zeros((count, output.features.shape[1]), dtype=np.float32)
            collected[where] = output.features
    return GradeOutput(logits[places], None if collected is None else collected[places])


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
