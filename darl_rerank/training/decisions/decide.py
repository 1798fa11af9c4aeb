"""All decisions of a checkpoint that belong to a calibration, fitted together with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.model.calibration import Calibration
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.decisions import Decisions, Promise

from .cuts import fit_cuts
from .grades import fit_grade_cuts


def recalibrated(
    checkpoint: Checkpoint,
    calibration: Calibration,
    logits: NDArray[np.floating[Any]],
    grades: NDArray[np.integer[Any]],
    queries: NDArray[Any],
    *,
    novelty: NDArray[np.floating[Any]] | None = None,
    weights: NDArray[np.floating[Any]] | None = None,
    promises: Sequence[Promise] = (),
    cost: NDArray[np.floating[Any]] | None = None,
    prevalence: Sequence[float] | None = None,
) -> Checkpoint:
    """The checkpoint with another calibration and the decisions that go with it.

    Cut points between grades are fitted anew, since they are points on the score, which a calibration moves. Cuts that
    were fitted for an earlier one are dropped. The weight in a fusion stays: it is of standardised scores.

    Args:
        checkpoint: the model.
        calibration: as fitted on the pairs.
        logits: of n pairs that people graded, shape (n, K).
        grades: their grades, shape (n,).
        queries: which query each belongs to, shape (n,).
        novelty: shape (n,), or None.
        weights: what each pair counts for the prevalence, shape (n,); all alike if None.
        promises: cuts to fit.
        cost: see `fit_grade_cuts`.
        prevalence: shares of the grades in the traffic to come, if they are not those of the pairs.

    Raises:
        InputError: as `fit_grade_cuts` and `fit_cut`.
    """
    probabilities = calibration.probabilities(logits, novelty)
    size = len(checkpoint.scale)
    cuts = fit_cuts(promises, probabilities, grades, queries, novelty=novelty)
    points = fit_grade_cuts(
        probabilities @ checkpoint.scale.gains, np.asarray(grades)[:, None] == np.arange(size), queries, cost=cost
    )
    own = np.average(probabilities, axis=0, weights=weights)
    # A share of 0 could not be divided by; it takes logits of hundreds.
    own = np.maximum(own, 1e-9)
    known = Calibration(
        calibration.temperature, calibration.novelty_slope, calibration.bias, tuple(map(float, own / own.sum()))
    )
    return checkpoint.replace(
        calibration=known if prevalence is None else known.for_prevalence(prevalence),
        decisions=Decisions(points, cuts, checkpoint.decisions.fusion),
    )
