"""How far grade probabilities can be trusted: likelihood, ranked score, calibration error, risk against coverage.

Weights are as in `grading`: shape (n,) for one value, (b, n) for b values at once. Probabilities have shape (n, K).
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .grading import Floats, Labels, example_weights, tied_groups, weighted_mean

# A probability of exactly 0 for the true grade would make the mean infinite; float64 gets there at a margin of 745.
_SMALLEST = np.finfo(np.float64).tiny


def negative_log_likelihood(labels: NDArray[Any], probabilities: Floats, weights: NDArray[Any] | None = None) -> Floats:
    """Mean of −log p of the true grade, in nats; of −Σ t log p if `labels` are probabilities t, shape (n, K)."""
    logs = np.log(np.maximum(probabilities, _SMALLEST))
    values = logs[np.arange(len(logs)), labels] if labels.ndim == 1 else (labels * logs).sum(axis=1)
    return weighted_mean(-values, weights)


def ranked_probability_score(labels: Labels, probabilities: Floats, weights: NDArray[Any] | None = None) -> Floats:
    """Mean of Σ_{j<K−1} (F_j − 1[y ≤ j])², F the cumulative probabilities (Epstein 1969). 0 is perfect."""
    grades = probabilities.shape[1]
    truth = np.asarray(labels)[:, None] <= np.arange(grades - 1)
    return weighted_mean(np.square(probabilities.cumsum(axis=1)[:, :-1] - truth).sum(axis=1), weights)


def mass_above(labels: Labels, probabilities: Floats, weights: NDArray[Any] | None = None) -> Floats:
    """Mean probability given to grades above the true one: what over-confidence costs a search engine."""
    above = np.arange(probabilities.shape[1]) > np.asarray(labels)[:, None]
    return weighted_mean((probabilities * above).sum(axis=1), weights)


class ReliabilityCurve(TypedDict):
    """Bins of one grade's (or the top grade's) probability; lists of one entry a bin that holds any pair.

    Keys: lower and upper edge of the bin, mean probability in it, how often the grade was the true one, and the pairs.
    """

    lower: list[float]
    upper: list[float]
    confidence: list[float]
    frequency: list[float]
    count: list[float]


def _bins(confidence: Floats, bins: int) -> NDArray[np.intp]:
    """Bin of each probability: `bins` equal ones, closed above, as in Guo et al. 2017."""
    return np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)


def _binned_error(confidence: Floats, hit: NDArray[np.bool_], weights: Floats, bins: int) -> Floats:
    """Σ over bins of |Σ w (hit − confidence)| / Σ w, which is the mass-weighted gap of frequency and confidence."""
    member = np.zeros((len(confidence), bins))
    member[np.arange(len(confidence)), _bins(confidence, bins)] = hit - confidence
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(weights @ member).sum(axis=-1) / weights.sum(axis=-1))


def expected_calibration_error(
    labels: Labels, probabilities: Floats, *, bins: int = 15, weights: NDArray[Any] | None = None
) -> Floats:
    """ECE of the most probable grade with equal-width bins (Guo et al., ICML 2017), 0..1."""
    top = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(top)), top]
    return _binned_error(confidence, top == labels, example_weights(len(top), weights), bins)


def classwise_calibration_error(
    labels: Labels, probabilities: Floats, *, bins: int = 15, weights: NDArray[Any] | None = None
) -> Floats:
    """ECE of each grade's own probability, shape (…, K) (classwise ECE, Kull et al., NeurIPS 2019)."""
    w = example_weights(len(labels), weights)
    grades = range(probabilities.shape[1])
    return np.stack([_binned_error(probabilities[:, k], np.asarray(labels) == k, w, bins) for k in grades], axis=-1)


def reliability_curve(
    labels: Labels, probabilities: Floats, grade: int | None = None, bins: int = 15
) -> ReliabilityCurve:
    """What a reliability diagram shows: for `grade`, or for the most probable grade if None."""
    if grade is None:
        top = probabilities.argmax(axis=1)
        confidence, hit = probabilities.max(axis=1), top == labels
    else:
        confidence, hit = probabilities[:, grade], np.asarray(labels) == grade
    bin_of = _bins(confidence, bins)
    count = np.bincount(bin_of, minlength=bins)
    used = np.flatnonzero(count)
    return ReliabilityCurve(
        lower=(used / bins).tolist(),
        upper=((used + 1) / bins).tolist(),
        confidence=(np.bincount(bin_of, confidence, bins)[used] / count[used]).tolist(),
        frequency=(np.bincount(bin_of, hit, bins)[used] / count[used]).tolist(),
        count=count[used].astype(float).tolist(),
    )


def area_under_risk_coverage(labels: Labels, probabilities: Floats, weights: NDArray[Any] | None = None) -> Floats:
    """AURC: the error rate among the pairs the model is surest of, averaged over how many of them one keeps.

    Confidence is the largest probability; pairs of equal confidence are kept or dropped together, so the value does not
    depend on their order. Source: Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation" (ICLR 2019).
    """
    w = example_weights(len(labels), weights)
    order, starts = tied_groups(-probabilities.max(axis=1))
    wrong = (probabilities.argmax(axis=1) != labels).astype(np.float64)
    mass = np.add.reduceat(w[..., order], starts, axis=-1)
    errors = np.add.reduceat((w * wrong)[..., order], starts, axis=-1)
    kept = np.cumsum(mass, axis=-1)
    risk = np.divide(np.cumsum(errors, axis=-1), kept, out=np.zeros_like(kept), where=kept > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((mass * risk).sum(axis=-1) / kept[..., -1])
