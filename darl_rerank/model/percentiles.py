"""Raw scores as percentiles of the scores of held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TABLE_KNOTS = 513


@dataclass(frozen=True)
class PercentileTable:
    """A raw score as a percentile of the held-out scores, strictly increasing wherever the scores tell pairs apart.

    Between the smallest and the largest of n held-out scores: linear between quantiles, rank / (n + 1). Beyond them the
    percentile goes on towards 0 and 100 without reaching them, half of the way for every `tail` past the end; so 100
    never occurs, and pairs that are all stranger than any held-out pair keep their order.

    Attributes:
        values: raw scores at the knots, increasing, shape (q,), float64.
        percents: their percentiles, increasing, shape (q,), float64.
        tail: raw distance past an end at which half of the rest is used up, > 0.
    """

    values: NDArray[np.float64]
    percents: NDArray[np.float64]
    tail: float

    @classmethod
    def fit(cls, scores: NDArray[np.floating[Any]]) -> PercentileTable:
        """The table of held-out raw scores, shape (n,)."""
        scores = np.sort(np.asarray(scores, dtype=np.float64))
        values, first, counts = np.unique(scores, return_index=True, return_counts=True)
        percents = 100.0 * (first + (counts + 1) / 2) / (len(scores) + 1)
        knots = np.unique(np.linspace(0, len(values) - 1, min(_TABLE_KNOTS, len(values))).round().astype(int))
        tail = float(scores[-1] - np.median(scores))
        return cls(values[knots], percents[knots], tail if tail > 0 else 1.0)

    def __call__(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Percentiles of raw scores, each strictly between 0 and 100; any shape."""
        scores = np.asarray(scores, dtype=np.float64)
        percents = np.interp(scores, self.values, self.percents)
        above = np.maximum(scores - self.values[-1], 0.0)
        below = np.maximum(self.values[0] - scores, 0.0)
        percents += (100.0 - self.percents[-1]) * above / (above + self.tail)
        percents -= self.percents[0] * below / (below + self.tail)
        result: NDArray[np.float64] = percents
        return result
