"""Confidence intervals from a bootstrap over queries.

Pairs of one query are alike, so queries are drawn with replacement, never pairs. A draw is a row of weights: how often
each pair's query was drawn. A measure maps weights of shape (b, n) to b values, which makes a thousand draws a few
matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError

Measure = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# Cells of the weight matrix held at once: 32 MB.
_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure's value with its percentile bootstrap interval.

    Attributes:
        value: on the data as they are; NaN if undefined.
        low, high: the interval's ends; NaN if the measure was undefined in more than half of the draws.
        draws: in how many draws the measure was defined.
    """

    value: float
    low: float
    high: float
    draws: int

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN: undefined numbers become None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{k: v if np.isfinite(v) else None for k, v in numbers.items()}, "draws": self.draws}


def draw_weights(queries: NDArray[Any], *, resamples: int = 1000, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Blocks of draws, each of shape (b, n), `resamples` rows in all; the same for the same queries and seed.

    Args:
        queries: shape (n,), anything that compares: which query each pair belongs to.
    """
    _, query_of = np.unique(np.asarray(queries), return_inverse=True)
    if not len(query_of):
        raise InputError("a bootstrap needs at least one pair")
    count = int(query_of.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // len(query_of))
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(rows, resamples - start))
        yield drawn[:, query_of].astype(np.float64)


def bootstrap(
    measures: Mapping[str, Measure],
    queries: NDArray[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """The value and interval of every measure, all on the same draws.

    Args:
        measures: by name; each maps weights (b, n) to values (b,).
        queries: shape (n,).
        resamples: number of draws.
        level: coverage of the intervals.
        seed: of the draws.
    """
    return {
        name: interval(float(measures[name](np.ones((1, len(queries))))[0]), values, level=level)
        for name, values in draw_values(measures, queries, resamples=resamples, seed=seed).items()
    }


def draw_values(
    measures: Mapping[str, Measure], queries: NDArray[Any], *, resamples: int = 1000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Every measure's value in every draw, shape (resamples,)."""
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in measures}
    for weights in draw_weights(queries, resamples=resamples, seed=seed):
        for name, measure in measures.items():
            parts[name].append(measure(weights))
    return {name: np.concatenate(values) for name, values in parts.items()}


def interval(value: float, draws: NDArray[np.float64], *, level: float = 0.95) -> Interval:
    """The percentile interval of a measure's values in the draws; undefined ones (NaN) are left out and not counted."""
    defined = draws[np.isfinite(draws)]
    if 2 * len(defined) < len(draws) or not len(defined):
        return Interval(value, float("nan"), float("nan"), len(defined))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(defined))


@dataclass(frozen=True, slots=True)
class Difference:
    """How much a second system's measure exceeds a first one's, on the same pairs.

    Attributes:
        interval: of second minus first.
        p_value: two-sided: twice the smaller part of draws on either side of 0, at least 1 / (draws + 1).
    """

    interval: Interval
    p_value: float


def paired_difference(
    first: Measure,
    second: Measure,
    queries: NDArray[Any],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two systems on the same pairs: both measures see the same draws, so what queries share cancels out."""

    def gap(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return second(weights) - first(weights)

    draws = draw_values({"gap": gap}, queries, resamples=resamples, seed=seed)["gap"]
    whole = interval(float(gap(np.ones((1, len(queries))))[0]), draws, level=level)
    draws = draws[np.isfinite(draws)]
    smaller = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(whole, min(1.0, 2 * (smaller + 1) / (len(draws) + 1)))
