"""How well predicted grades and scores agree with the true grades.

Every measure takes example weights of shape (n,) or (b, n) and returns one value or b values: a resample of a bootstrap
is a row of integer weights, so a thousand of them are one call. That, and nothing else, is why they are written here
and not taken from scikit-learn and SciPy, which the tests compare them with. An undefined value is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.integer[Any]]


def example_weights(count: int, weights: NDArray[Any] | None) -> Floats:
    """`weights` in float64, shape (count,) or (b, count); all 1 if None."""
    return np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)


def weighted_mean(values: NDArray[Any], weights: NDArray[Any] | None = None) -> Floats:
    """Mean of `values`, shape (n,), under each row of weights."""
    w = example_weights(len(values), weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((w @ np.asarray(values, dtype=np.float64)) / w.sum(axis=-1))


def confusion(labels: Labels, predicted: Labels, grades: int, weights: NDArray[Any] | None = None) -> Floats:
    """Confusion counts, true grade by row and predicted grade by column, shape (K, K) or (b, K, K)."""
    w = example_weights(len(labels), weights)
    cells = np.zeros((len(labels), grades * grades))
    cells[np.arange(len(labels)), np.asarray(labels) * grades + np.asarray(predicted)] = 1.0
    counts = np.asarray(w @ cells, dtype=np.float64)
    return np.asarray(counts.reshape(*w.shape[:-1], grades, grades), dtype=np.float64)


def accuracy(counts: Floats) -> Floats:
    """Part of the pairs whose grade is exactly right, from `confusion`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1)))


def f1_per_grade(counts: Floats) -> Floats:
    """F1 of every grade, shape (…, K), from `confusion`; 0 for a grade that is neither true nor predicted anywhere."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(axis=-1) + counts.sum(axis=-2)
    return np.asarray(np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0))


def macro_f1(counts: Floats) -> Floats:
    """Mean F1 over the grades that are true or predicted somewhere, as scikit-learn takes them; from `confusion`."""
    present = (counts.sum(axis=-1) + counts.sum(axis=-2)) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(f1_per_grade(counts).sum(axis=-1) / present.sum(axis=-1))


def quadratic_weighted_kappa(counts: Floats) -> Floats:
    """Cohen's kappa with weights (i − j)², from `confusion`. Source: Cohen, "Weighted kappa" (1968).

    1 is full agreement, 0 that of chance. NaN if all labels and predictions are one grade.
    """
    grades = np.arange(counts.shape[-1])
    cost = np.square(grades[:, None] - grades[None, :]).astype(np.float64)
    total = counts.sum(axis=(-2, -1))
    by_chance = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (counts * cost).sum(axis=(-2, -1)) * total / (by_chance * cost).sum(axis=(-2, -1)))


def tied_groups(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order that sorts `values`, shape (n,), upwards, and where each run of equal values starts in it."""
    order = np.argsort(values, kind="stable")
    ordered = np.asarray(values)[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, dtype=np.intp)
    return order, starts


def area_under_roc(positive: NDArray[np.bool_], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> Floats:
    """Probability that a positive example scores above a negative one, ties counting half. NaN without both.

    Args:
        positive: shape (n,).
        scores: shape (n,), higher for positive.
    """
    w = example_weights(len(scores), weights)
    order, starts = tied_groups(scores)
    positives = np.add.reduceat((w * positive)[..., order], starts, axis=-1)
    negatives = np.add.reduceat((w * ~np.asarray(positive))[..., order], starts, axis=-1)
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = (positives * below).sum(axis=-1)
        return np.asarray(wins / (positives.sum(axis=-1) * negatives.sum(axis=-1)))


def area_at_cut(labels: Labels, scores: NDArray[Any], cut: int, weights: NDArray[Any] | None = None) -> Floats:
    """AUC of the score for telling grades >= `cut` from grades below it."""
    return area_under_roc(np.asarray(labels) >= cut, scores, weights)


def spearman(labels: Labels, scores: NDArray[Any], weights: NDArray[Any] | None = None) -> Floats:
    """Spearman's rank correlation of score and grade: Pearson's of the mid-ranks. NaN if either is constant."""
    w = example_weights(len(scores), weights)
    a, b = _mid_ranks(labels, w), _mid_ranks(scores, w)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(axis=-1, keepdims=True)
        a = a - (w * a).sum(axis=-1, keepdims=True) / total
        b = b - (w * b).sum(axis=-1, keepdims=True) / total
        spread = (w * a * a).sum(axis=-1) * (w * b * b).sum(axis=-1)
        return np.asarray((w * a * b).sum(axis=-1) / np.sqrt(np.where(spread > 0, spread, np.nan)))


def _mid_ranks(values: NDArray[Any], weights: Floats) -> Floats:
    """Rank of each example among copies of all, as many of each as its weight; equal values share their mean rank."""
    order, starts = tied_groups(values)
    mass = np.add.reduceat(weights[..., order], starts, axis=-1)
    ranks = np.cumsum(mass, axis=-1) - mass / 2 + 0.5
    sizes = np.diff(np.r_[starts, len(order)])
    result = np.empty_like(weights)
    result[..., order] = np.repeat(ranks, sizes, axis=-1)
    return result
