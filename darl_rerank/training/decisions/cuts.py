"""Cuts that hold a promise: recall by conformal risk control, precision by Learn then Test."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.decisions import Cut, Promise, reaches

# How sure a precision is: it is missed for at most one in ten draws of the calibration queries.
CONFIDENCE = 0.9
_FAMILIAR = 95
Floats = NDArray[np.float64]


def fit_cut(
    promise: Promise,
    probabilities: NDArray[np.floating[Any]],
    grades: NDArray[np.integer[Any]],
    queries: NDArray[Any],
    *,
    novelty: NDArray[np.floating[Any]] | None = None,
    confidence: float = CONFIDENCE,
) -> Cut:
    """The threshold that keeps the most (precision) or cuts the most (recall) and still holds the promise.

    Recall: λ̂ = the highest threshold with n/(n+1) · R̂(λ) + 1/(n+1) <= α, R̂ the mean over n queries of the share of
    their relevant documents that is cut (Angelopoulos et al., "Conformal Risk Control", ICLR 2024). The mean over
    calibration sets and new queries is then at most α. Queries without a relevant document have nothing to lose and
    don't count.

    Precision: thresholds are tested from the highest down, each by the Hoeffding-Bentkus p-value that the mean over
    queries of the share of irrelevant documents among those kept is above α, until one can't be refused (Angelopoulos
    et al., "Learn then Test", 2021, with fixed-sequence testing; the p-value of Bates et al., 2021, holds for any loss
    in 0..1). With `confidence` the mean over new queries is then at most α.

    Args:
        promise: what is to hold.
        probabilities: calibrated, shape (n, K).
        grades: true ones, shape (n,).
        queries: which query each pair belongs to, shape (n,). Queries must be exchangeable with those to come.
        novelty: shape (n,), for the warning on a query that is not like these.
        confidence: of a precision.

    Raises:
        InputError: too few queries to promise anything (it says how many it takes), no relevant pair, or no threshold
            that holds a precision.
    """
    score = reaches(probabilities, promise.grade)
    relevant = np.asarray(grades) >= promise.grade
    alpha = 1 - promise.level
    index = np.unique(np.asarray(queries), return_inverse=True)[1]
    if promise.kind == "recall":
        threshold, count = recall_threshold(promise, score, relevant, index)
    else:
        _check_any(promise, relevant)
        threshold, count = _precision(promise, score, relevant, index, confidence)
    strange = None
    if novelty is not None:
        strange = float(np.percentile(_means(np.asarray(novelty, dtype=np.float64), index), _FAMILIAR))
    kept = score >= threshold
    return Cut(
        promise,
        float(threshold),
        strange,
        {
            "queries": count, "pairs": len(score), "alpha": round(alpha, 12),
            **({"confidence": confidence} if promise.kind == "precision" else {}),
            "kept": float(kept.mean()),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
    )  # fmt: skip


def queries_needed(promise: Promise, confidence: float = CONFIDENCE) -> int:
    """How many queries it takes at least: with fewer, even one without any loss on them could break the promise."""
    alpha = 1 - promise.level
    if promise.kind == "recall":
        return math.ceil(round(1 / alpha - 1, 9))
    return math.ceil(round(math.log(1 - confidence) / math.log(1 - alpha), 9))


def recall_threshold(
    promise: Promise, score: Floats, relevant: NDArray[np.bool_], queries: NDArray[Any]
) -> tuple[float, int]:
    """The highest threshold on `score` that keeps a recall, see `fit_cut`, and how many queries it rests on.

    Args:
        promise: of a recall.
        score: what a pair is kept by, if it is at least the threshold, shape (n,).
        relevant: shape (n,).
        queries: which query each pair belongs to, shape (n,).

    Raises:
        InputError: no relevant pair, or too few queries.
    """
    _check_any(promise, relevant)
    index = np.unique(queries, return_inverse=True)[1]
    alpha, n = 1 - promise.level, len(np.unique(index[relevant]))
    if n < (needed := queries_needed(promise)):
        raise InputError(
            f"{n} queries with a relevant document can't promise a recall of {promise.level:g}: it takes {needed}"
        )
    # One relevant document below the threshold costs its query 1 / its number of relevant documents.
    own = index[relevant]
    cost = 1 / np.bincount(own)[own]
    order = np.argsort(score[relevant], kind="stable")
    ordered, lost = score[relevant][order], np.concatenate([[0.0], np.cumsum(cost[order])]) / n
    # A threshold equal to the i-th smallest score cuts those strictly below it.
    below = np.searchsorted(ordered, ordered, side="left")
    holds = n / (n + 1) * lost[below] + 1 / (n + 1) <= alpha + 1e-12
    return float(ordered[holds].max()), n


def _check_any(promise: Promise, relevant: NDArray[np.bool_]) -> None:
    if not relevant.any():
        raise InputError(f"no pair has grade {promise.grade} or better: a cut needs some that are relevant")


def _precision(
    promise: Promise, score: Floats, relevant: NDArray[np.bool_], index: NDArray[np.intp], confidence: float
) -> tuple[float, int]:
    alpha, n = 1 - promise.level, int(index.max()) + 1
    if n < (needed := queries_needed(promise, confidence)):
        raise InputError(
            f"{n} queries can't promise a precision of {promise.level:g} with confidence {confidence:g}: "
            f"it takes {needed}"
        )
    best = math.nan
    kept, wrong, loss = np.zeros(n), np.zeros(n), np.zeros(n)
    order = np.argsort(-score, kind="stable")
    start = 0
    for end in [*(np.flatnonzero(np.diff(score[order])) + 1).tolist(), len(order)]:
        for i in order[start:end]:
            kept[index[i]] += 1
            wrong[index[i]] += not relevant[i]
            loss[index[i]] = wrong[index[i]] / kept[index[i]]
        start = end
        if hoeffding_bentkus(float(loss.mean()), n, alpha) > 1 - confidence:
            break
        best = float(score[order[end - 1]])
    if math.isnan(best):
        raise InputError(
            f"no threshold has a precision of {promise.level:g} on these {n} queries with confidence {confidence:g}: "
            "promise less, or label more queries"
        )
    return best, n


def hoeffding_bentkus(mean: float, n: int, alpha: float) -> float:
    """p-value of "the mean of a loss in 0..1 is above `alpha`" from the mean of n losses. Source: Bates et al. 2021."""
    if mean >= alpha:
        return 1.0
    hoeffding = math.exp(-n * _divergence(mean, alpha))
    return min(1.0, hoeffding, math.e * _binomial_below(math.ceil(n * mean), n, alpha))


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(a) from Bernoulli(b), in nats."""
    first = a * math.log(a / b) if a else 0.0
    return first + (1 - a) * math.log((1 - a) / (1 - b))


def _binomial_below(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k)."""
    log = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    )
    return min(1.0, sum(map(math.exp, log)))


def _means(values: Floats, index: NDArray[np.intp]) -> Floats:
    return np.asarray(np.bincount(index, values) / np.bincount(index))


def fit_cuts(promises: Sequence[Promise], *pairs: Any, **options: Any) -> tuple[Cut, ...]:
    """`fit_cut` for several promises; of equal ones the first counts."""
    return tuple(fit_cut(promise, *pairs, **options) for promise in dict.fromkeys(promises))
