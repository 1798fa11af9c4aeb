"""Selection from texts to chosen pairs: features, novelty of the pool, strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.novelty import fit_novelty, middle_layer_weights, shrunk_covariance
from darl_rerank.progress import Progress
from darl_rerank.reranker import Reranker
from darl_rerank.trec.graded_pairs import GradedPair

from ..data.features import PairFeatures, extract_features, open_features
from ..recipe.settings import DEFAULT_STRATEGY, SelectionSettings
from .candidates import describe_pool
from .select import select


@dataclass(frozen=True, slots=True)
class SelectedPairs:
    """The chosen pairs of a pool.

    Attributes:
        rows: their numbers in the pool, the first choice first, shape (b,).
        novelty: percentile of each, shape (b,).
        predicted: the model's calibrated grade distribution of each, shape (b, K).
        above_band: numbers of the most novel pairs that were cut.
        summary: see `select.Selection`.
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
    budget: int,
    settings: SelectionSettings,
    strategy: str = DEFAULT_STRATEGY,
    rows: NDArray[np.intp] | None = None,
    pool_features: Path | None = None,
    progress: Progress = True,
) -> SelectedPairs:
    """Compute what `select.select` needs, streamed to `folder`, and select.

    Args:
        pool: unlabelled pairs. Features are computed of all of them, so they serve again when more are labelled.
        training: labelled pairs that count as covered.
        held_out: labelled pairs of other queries, which novelty's percentiles are made from.
        model: the current model, whose uncertainty counts.
        features: the base model, whose features count; may be `model`.
        folder: for features; the same call after a kill goes on from there.
        budget, settings, strategy: as in `select.select`.
        rows: numbers of the pairs of `pool` that may be chosen, shape (n,); all if None.
        pool_features: a folder with the finished features of `pool`, from an earlier selection or `extract_features`;
            they are computed, to `folder`, if None.
        progress: see `darl_rerank.progress`.

    Raises:
        MissingDependencyError: scikit-learn is not installed; nothing has been computed.
        InputError: `pool_features` is not finished, or is of another model or other pairs; or as in `select`.
    """

    def of(name: str, pairs: Sequence[GradedPair], ready: Path | None = None) -> PairFeatures:
        return extract_features(features, pairs, ready or folder / name, progress=progress, description=name)

    shrunk_covariance()
    if pool_features is not None:
        # An unfinished folder is an error, not a reason to run a model for days.
        open_features(pool_features)
    # The pool first: if its features are another pool's, nothing has been computed in vain.
    seen = of("pool", pool, pool_features)
    known, home = of("training", training), of("held-out", held_out)
    rows = np.arange(len(pool)) if rows is None else rows
    weights = middle_layer_weights(known.features.shape[1])
    novelty = fit_novelty(known.features, home.features, weights=weights, k=min(10, len(known) - 1), seed=settings.seed)
    logits, features_of_model = seen.logits, seen.features
    if model is not features:
        wants = model.checkpoint.calibration.needs_novelty
        own = extract_features(
            model, pool, folder / "pool-model", with_features=wants, progress=progress, description="model"
        )
        logits, features_of_model = own.logits, own.features
    calibration = model.checkpoint.calibration
    its_novelty = None
    if calibration.needs_novelty:
        if model.checkpoint.novelty is None:
            raise InputError("the model's calibration follows novelty, but it has no novelty statistics")
        its_novelty = model.checkpoint.novelty.score(features_of_model)
    probabilities = calibration.probabilities(logits, its_novelty)
    candidates = describe_pool(
        seen.features, probabilities[rows], [pool[row].qid for row in rows], known.features, novelty,
        rows=rows, workspace=folder, progress=progress,
    )  # fmt: skip
    found = select(candidates, budget, strategy, settings)
    chosen = rows[found.rows]
    return SelectedPairs(
        chosen, candidates.novelty[found.rows], probabilities[chosen], rows[found.above_band], found.summary
    )
