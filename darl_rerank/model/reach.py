"""How probable it is that a document further down a first stage's list still reaches the top of the new order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# So many documents are judged between two looks at the probability; it was fitted for this many to come.
STEP = 10
# The last so many judged documents say what the next ones are like.
_WINDOW = 20
# Standard deviation of scores below which documents count as alike.
_LEAST_SPREAD = 0.05
# Tops that the probability is fitted for.
_TOPS = (3, 5, 10, 20)
# The bound is read off for a top of so many, of which this part must be found in the mean over the lists.
_BOUND_TOP = 10
_FOUND = 0.9
_BOUNDS = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)


@dataclass(frozen=True, slots=True)
class Reach:
    """P(a document among the next ten of a list reaches the top k) = σ(intercept + slope · d).

    d is by how much the k-th best score so far lies above the mean of the last twenty judged documents, in their
    standard deviations. Two coefficients, fitted by maximum likelihood on lists that were judged whole; no grades.

    Attributes:
        intercept, slope: of the logit.
        bound: where the probability is at most this, no more documents are judged: the largest value at which, in the
            mean over the lists, 90 % of the top ten of the whole list was found.
        lists: how many lists it was fitted on.

    Raises:
        InputError: values that are not finite numbers, or a bound outside of (0, 1).
    """

    intercept: float
    slope: float
    bound: float
    lists: int = 0

    def __post_init__(self) -> None:
        if not np.isfinite([self.intercept, self.slope]).all() or not 0 < self.bound < 1:
            raise InputError(
                f"expected a finite intercept and slope and a bound between 0 and 1, got {self.intercept}, "
                f"{self.slope} and {self.bound}"
            )

    def probability(self, scores: NDArray[np.floating[Any]], top_k: int) -> float:
        """Of a document among the next `STEP`.

        Args:
            scores: of the documents judged so far, in the list's order, shape (m,), in the score's own unit.
            top_k: size of the top. With fewer judged documents than that the probability is 1.
        """
        if len(scores) < top_k:
            return 1.0
        logit = self.intercept + self.slope * _distance(scores, top_k)
        return float(1 / (1 + np.exp(-np.clip(logit, -700, 700))))

    def stops_at(self, scores: NDArray[np.floating[Any]], top_k: int) -> int:
        """How many documents of a list are judged before it stops, given the scores of all, in the list's order."""
        seen = min(STEP, len(scores))
        while seen < len(scores) and self.probability(scores[:seen], top_k) > self.bound:
            seen = min(seen + STEP, len(scores))
        return seen

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reach:
        try:
            intercept, slope, bound = (float(values[name]) for name in ("intercept", "slope", "bound"))
            return cls(intercept, slope, bound, int(values.get("lists", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"expected intercept, slope and bound, all numbers: {error}") from error


def fit_reach(lists: Sequence[NDArray[np.floating[Any]]]) -> Reach:
    """Fit on lists that were judged whole.

    Args:
        lists: for each query the scores of its documents in the first stage's order, shape (m,); lists of fewer than
            twice `STEP` documents are left out.

    Raises:
        InputError: too few lists that are long enough, or scores that are not finite.
    """
    usable = [np.asarray(scores, dtype=np.float64) for scores in lists if len(scores) >= 2 * STEP]
    if len(usable) < 10:
        raise InputError(f"expected at least 10 lists of {2 * STEP} documents or more, got {len(usable)}")
    if not all(np.isfinite(scores).all() for scores in usable):
        raise InputError("scores must be finite")
    distances, shares = [], []
    for scores in usable:
        for top_k in _TOPS:
            for seen in range(max(top_k, STEP), len(scores)):
                best = np.sort(scores[:seen])[-top_k]
                distances.append(_distance(scores[:seen], top_k))
                shares.append(float((scores[seen : seen + STEP] > best).mean()))
    intercept, slope = _logistic(np.array(distances), np.array(shares))
    at = [Reach(intercept, slope, bound, len(usable)) for bound in _BOUNDS]
    good = [reach for reach in at if np.mean([_found(reach, scores) for scores in usable]) >= _FOUND]
    return max(good, key=lambda reach: reach.bound, default=at[0])


def _distance(scores: NDArray[np.floating[Any]], top_k: int) -> float:
    recent = scores[-_WINDOW:]
    best = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    return float((best - recent.mean()) / max(float(recent.std()), _LEAST_SPREAD))


def _found(reach: Reach, scores: NDArray[np.float64]) -> float:
    """The part of the whole list's top that is found where judging stops."""
    seen = reach.stops_at(scores, _BOUND_TOP)
    whole, part = (set(np.argsort(-found, kind="stable")[:_BOUND_TOP].tolist()) for found in (scores, scores[:seen]))
    return len(whole & part) / len(whole)


def _logistic(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Intercept and slope of the most likely logistic regression of shares `y` on `x`, by Newton's method."""
    design = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        # A trace of ridge keeps the step finite where the shares leave no curvature.
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (y - p) - 1e-9 * weights)
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])
