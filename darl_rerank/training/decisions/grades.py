"""Cut points between grades: where on the score one grade ends and the next begins."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.decisions import GradeCuts

Floats = NDArray[np.float64]

# Candidates for a cut point: this many quantiles of the scores.
_CANDIDATES = 100
_SWEEPS = 20


@dataclass(frozen=True)
class _Group:
    """One collection, counted.

    Attributes:
        counts: pairs of each query, kind of label and score bin, shape (q, u, bins).
        cost: of giving a grade to a kind of label, shape (u, K).
    """

    counts: Floats
    cost: Floats


def fit_grade_cuts(
    score: NDArray[np.floating[Any]],
    allowed: NDArray[Any],
    queries: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    cost: NDArray[np.floating[Any]] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> GradeCuts:
    """The cut points under which given and true grades agree best.

    What is maximised is Cohen's quadratically weighted kappa (1968), or, with `cost`, minus the mean cost; the mean
    over groups, each counting alike. A label may leave open which of several grades is right (an answer that people
    chose is relevant or perfect): it then costs what the nearest of these costs. The optimum of one sample is unsteady,
    since the objective is flat around it and has steps; each cut point is therefore the median of the optima of a
    bootstrap over queries.

    Args:
        score: expected gain, shape (n,).
        allowed: grades, shape (n,), or which grades each label allows, shape (n, K), bool.
        queries: which query each pair belongs to, shape (n,).
        groups: which collection each pair belongs to, shape (n,); one if None.
        cost: of giving grade j to a pair of grade i, shape (K, K), 0 on the diagonal; None for kappa.
        resamples: draws of the bootstrap.
        seed: of the draws.

    Raises:
        InputError: shapes don't fit, there are no pairs or they are all of one grade, or a cost is not finite or
            below 0.
    """
    score = np.asarray(score, dtype=np.float64)
    allowed = np.asarray(allowed)
    if allowed.ndim == 1:
        size = len(cost) if cost is not None else int(allowed.max(initial=0)) + 1
        allowed = np.arange(size) == allowed[:, None]
    allowed = allowed.astype(bool)
    n, grades = allowed.shape
    if not n or score.shape != (n,) or np.shape(queries) != (n,) or (groups is not None and np.shape(groups) != (n,)):
        raise InputError(
            f"grades need as many scores, queries and groups as labels, at least one: {n} labels, {score.shape} scores"
        )
    if not allowed.any(axis=1).all() or allowed.all(axis=0).any():
        raise InputError(f"all {n} pairs may have the same grade: they say nothing of where one grade ends")
    distance = _checked(cost, grades)
    inner = np.quantile(score, np.linspace(0, 1, _CANDIDATES + 2)[1:-1])
    # And one above all scores, for a grade that is best not given.
    edges = np.unique(np.concatenate([inner, [np.nextafter(score.max(), np.inf)]]))
    bins = np.searchsorted(edges, score, side="right")
    of = np.zeros(n, dtype=np.intp) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    counted = [_count(bins[of == g], allowed[of == g], np.asarray(queries)[of == g], distance, len(edges)) for g in
               range(int(of.max()) + 1)]  # fmt: skip
    rng = np.random.default_rng(seed)
    found = [_best(draw, grades, by_chance=cost is None) for draw in _draws(counted, resamples, rng)]
    points = np.median(edges[np.array(found)], axis=0)
    return GradeCuts(
        tuple(float(point) for point in rising(points)),
        {
            "objective": "quadratic kappa" if cost is None else "expected cost",
            **({} if cost is None else {"cost": distance.tolist()}),
            "pairs": n,
            "queries": sum(len(group.counts) for group in counted),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        },
    )


def rising(points: Floats) -> Floats:
    """The points, each at least a rounding step above the one before it: a grade may be empty, but not upside down."""
    points = points.copy()
    for i in range(1, len(points)):
        points[i] = max(points[i], np.nextafter(points[i - 1], np.inf))
    return points


def _checked(cost: NDArray[np.floating[Any]] | None, grades: int) -> Floats:
    if cost is None:
        levels = np.arange(grades)
        return np.asarray((levels[:, None] - levels) ** 2, dtype=np.float64)
    stated = np.asarray(cost, dtype=np.float64)
    if stated.shape != (grades, grades) or not np.isfinite(stated).all() or (stated < 0).any() or np.diag(stated).any():
        raise InputError(f"costs must be {grades} rows of {grades} numbers, none below 0, with 0 for the right grade")
    return stated


def _count(
    bins: NDArray[np.intp], allowed: NDArray[np.bool_], queries: NDArray[Any], distance: Floats, edges: int
) -> _Group:
    kinds, kind = np.unique(allowed, axis=0, return_inverse=True)
    query = np.unique(queries, return_inverse=True)[1]
    counts = np.zeros((int(query.max()) + 1, len(kinds), edges + 1))
    np.add.at(counts, (query, kind.ravel(), bins), 1.0)
    return _Group(counts, np.stack([distance[row].min(axis=0) for row in kinds]))


def _draws(groups: list[_Group], resamples: int, rng: np.random.Generator) -> Iterator[list[tuple[Floats, Floats]]]:
    """Counts of each group cumulated over bins, shape (u, bins + 1), with its costs, for each draw of queries."""
    for _ in range(resamples):
        drawn = []
        for group in groups:
            q = len(group.counts)
            weights = rng.multinomial(q, np.full(q, 1 / q)).astype(np.float64)
            counts = np.tensordot(weights, group.counts, axes=1)
            drawn.append((np.concatenate([np.zeros((len(counts), 1)), counts.cumsum(axis=1)], axis=1), group.cost))
        yield drawn


def _best(groups: list[tuple[Floats, Floats]], grades: int, *, by_chance: bool) -> NDArray[np.intp]:
    """Indices of the edges that are best, by coordinate ascent from evenly spaced quantiles, shape (K-1,)."""
    edges = groups[0][0].shape[1] - 2
    chosen = np.linspace(0, edges - 1, grades + 1).round().astype(np.intp)[1:-1]
    best = -np.inf
    for _ in range(_SWEEPS):
        before = best
        for k in range(grades - 1):
            low = chosen[k - 1] if k else 0
            high = chosen[k + 1] if k + 2 < grades else edges - 1
            tried = np.repeat(chosen[None], high - low + 1, axis=0)
            tried[:, k] = np.arange(low, high + 1)
            values = np.mean([_agreement(*group, tried, by_chance=by_chance) for group in groups], axis=0)
            if values.max() > best:
                best, chosen = float(values.max()), tried[int(values.argmax())]
        if best <= before:
            break
    return chosen


def _agreement(cumulated: Floats, cost: Floats, tried: NDArray[np.intp], *, by_chance: bool) -> Floats:
    """Kappa, or minus the mean cost, for each row of edges tried, shape (t, K-1) to (t,)."""
    # Bin b + 1 is the first whose scores reach edge b.
    ends = np.concatenate(
        [np.zeros((len(tried), 1), np.intp), tried + 1, np.full((len(tried), 1), cumulated.shape[1] - 1)], axis=1
    )
    table = np.diff(cumulated[:, ends], axis=2).transpose(1, 0, 2)
    total = table.sum(axis=(1, 2))
    paid = (table * cost).sum(axis=(1, 2)) / np.maximum(total, 1e-12)
    if not by_chance:
        return np.asarray(-paid)
    chance = np.einsum("tu,tg,ug->t", table.sum(axis=2), table.sum(axis=1), cost) / np.maximum(np.square(total), 1e-12)
    return np.asarray(1 - paid / np.maximum(chance, 1e-12))
