"""Selection from texts to chosen pairs: features, novelty of the pool, strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.novelty import fit_novelty
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from .candidates import describe_pool
from .features import extract_features
from .selection import select
from .strategies import SelectionSettings


@dataclass(frozen=True, slots=True)
class SelectedPairs:
    """The chosen pairs of a pool.

    Attributes:
        rows: their numbers in the pool, the first choice first, shape (b,).
        novelty: percentile of each, shape (b,).
        predicted: the model's calibrated grade distribution of each, shape (b, K).
        above_band: numbers of the strangest pairs that were cut.
        summary: see `selection.Selection`.
    """

    rows: NDArray[np.intp]
    novelty: NDArray[np.float32]
    predicted: NDArray[np.float64]
    above_band: NDArray[np.intp]
    summary: dict[str, Any]


def select_pairs(
    pool: Sequence[GradedPair],
    training: Sequence[GradedPair],
    held_out: Sequence[GradedPair],
    model: Reranker,
    features: Reranker,
    folder: Path,
    *,
    strategy: str,
    budget: int,
    settings: SelectionSettings,
    progress: bool = True,
) -> SelectedPairs:
    """Compute what `selection.select` needs, streamed to `folder`, and select.

    Args:
        pool: unlabelled pairs.
        training: labelled pairs that count as covered.
        held_out: labelled pairs of other queries, which novelty's percentiles are made from.
        model: the current model, whose uncertainty counts.
        features: the base model, whose features count; may be `model`.
        folder: for features; the same call after a kill goes on from there.
        strategy, budget, settings: as in `selection.select`.
        progress: show rate and time left on stderr.
    """

    def of(name: str, pairs: Sequence[GradedPair]) -> Any:
        return extract_features(features, pairs, folder / name, progress=progress, description=name)

    known, home, seen = of("training", training), of("held-out", held_out), of("pool", pool)
    grades = np.array([pair.hard_grade for pair in training])
    novelty = fit_novelty(known.features, grades, home.features, k=min(10, len(known) - 1), seed=settings.seed)
    logits, features_of_model = seen.logits, seen.features
    if model is not features:
        wants = model.checkpoint.calibration.needs_novelty
        own = extract_features(
            model, pool, folder / "pool-model", with_features=wants, progress=progress, description="model"
        )
        logits, features_of_model = own.logits, own.features
    calibration = model.checkpoint.calibration
    strange = None
    if calibration.needs_novelty:
        if model.checkpoint.novelty is None:
            raise InputError("the model's calibration follows novelty, but it has no novelty statistics")
        strange = model.checkpoint.novelty.score(features_of_model)
    probabilities = calibration.probabilities(logits, strange)
    candidates = describe_pool(
        seen.features, probabilities, [pair.qid for pair in pool], known.features, novelty,
        workspace=folder, progress=progress,
    )  # fmt: skip
    found = select(candidates, budget, strategy, settings)
    return SelectedPairs(
        found.rows, candidates.novelty[found.rows], probabilities[found.rows], found.above_band, found.summary
    )
