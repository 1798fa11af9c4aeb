"""How well a novelty score tells out-of-distribution (OOD) pairs from in-distribution (ID) ones.

Weights are as in `grading`. Feed raw scores or percentiles: both measures depend on the order only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grading import Floats, area_under_roc, example_weights, tied_groups


def auroc(outside: NDArray[np.bool_], novelty: NDArray[Any], weights: NDArray[Any] | None = None) -> Floats:
    """Probability that an OOD pair is scored stranger than an ID pair; 0.5 is chance. NaN without both kinds.

    Args:
        outside: which pairs are OOD, shape (n,).
        novelty: shape (n,), higher is stranger.
    """
    return area_under_roc(outside, novelty, weights)


def fpr_at_recall(
    outside: NDArray[np.bool_], novelty: NDArray[Any], weights: NDArray[Any] | None = None, *, recall: float = 0.95
) -> Floats:
    """FPR95: part of the ID pairs flagged by the strictest threshold that flags `recall` of the OOD pairs.

    Source: Hendrycks and Gimpel (ICLR 2017), with OOD as the positive class. NaN without both kinds.
    """
    w = example_weights(len(novelty), weights)
    order, starts = tied_groups(-np.asarray(novelty, dtype=np.float64))
    flagged = np.cumsum(np.add.reduceat((w * outside)[..., order], starts, axis=-1), axis=-1)
    alarms = np.cumsum(np.add.reduceat((w * ~np.asarray(outside))[..., order], starts, axis=-1), axis=-1)
    # Integer weights times 0.95 may land a rounding above the count that meets it.
    enough = flagged >= recall * flagged[..., -1:] - 1e-9
    first = enough.argmax(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.take_along_axis(alarms, first[..., None], axis=-1)[..., 0] / alarms[..., -1]
        return np.asarray(np.where(flagged[..., -1] > 0, rate, np.nan))
