"""Drift: is traffic still what a model was calibrated on, as far as novelty can tell?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError

# A novelty above this is raised by one in twenty of the pairs that the model was calibrated on.
ABOVE = 95.0
# Below this probability of so great a distance the traffic is called another.
SIGNIFICANT = 0.01


@dataclass(frozen=True, slots=True)
class Drift:
    """What the novelty of some traffic says.

    Attributes:
        pairs, queries: how many were looked at.
        above: share of the pairs whose novelty is above `ABOVE`; of pairs like the held-out ones it is .05.
        mean: mean novelty; of pairs like the held-out ones it is 50.
        distance: Kolmogorov-Smirnov distance from the held-out pairs, 0..1, the median over draws.
        p_value: of so great a distance, the median over draws.
        strangest: query ids with their mean novelty, the highest first.
    """

    pairs: int
    queries: int
    above: float
    mean: float
    distance: float
    p_value: float
    strangest: list[tuple[str, float]]

    @property
    def drifted(self) -> bool:
        """Whether the traffic is stranger than what the model was calibrated on. A more familiar one is no drift."""
        return self.p_value < SIGNIFICANT and self.mean > 50

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "pairs": self.pairs, "queries": self.queries, "above_95": self.above, "mean_novelty": self.mean,
            "distance": self.distance, "p_value": self.p_value, "drifted": self.drifted,
            "strangest": [{"qid": qid, "novelty": novelty} for qid, novelty in self.strangest],
        }  # fmt: skip


def measure_drift(
    novelty: NDArray[np.floating[Any]], queries: NDArray[Any], held_out: int, *, draws: int = 101, seed: int = 0
) -> Drift:
    """Compare traffic with the held-out pairs by the two-sample Kolmogorov-Smirnov test.

    Novelty is a percentile of the held-out pairs, so theirs is even over 0..100. The pairs of one query are alike,
    which the test does not allow for: each draw takes one pair of each query.

    Args:
        novelty: shape (n,), 0..100.
        queries: which query each pair belongs to, shape (n,).
        held_out: how many pairs made the percentiles.
        draws: of one pair a query.
        seed: of the draws.

    Raises:
        InputError: no pairs, shapes that differ, or a novelty that is not within 0..100.
    """
    novelty, queries = np.asarray(novelty, dtype=np.float64), np.asarray(queries)
    if not len(novelty) or novelty.shape != queries.shape:
        raise InputError(
            f"drift needs the novelty and the query of some pairs, got {novelty.shape} and {queries.shape}"
        )
    if not ((novelty >= 0) & (novelty <= 100)).all():
        raise InputError("novelty must be a percentile, 0 to 100")
    names, index = np.unique(queries, return_inverse=True)
    means = np.bincount(index, novelty) / np.bincount(index)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(draws):
        shuffled = rng.permutation(len(novelty))
        _, first = np.unique(index[shuffled], return_index=True)
        distances.append(_distance_from_even(novelty[shuffled[first]] / 100))
    distance = float(np.median(distances))
    size = len(names) * held_out / (len(names) + held_out)
    order = np.argsort(-means, kind="stable")
    return Drift(
        pairs=len(novelty),
        queries=len(names),
        above=float((novelty > ABOVE).mean()),
        mean=float(novelty.mean()),
        distance=distance,
        p_value=kolmogorov((math.sqrt(size) + 0.12 + 0.11 / math.sqrt(size)) * distance),
        strangest=[(str(names[i]), float(means[i])) for i in order],
    )


def _distance_from_even(values: NDArray[np.float64]) -> float:
    """The largest gap between the share of values below a point of 0..1 and the point."""
    ordered = np.sort(values)
    n = len(ordered)
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def kolmogorov(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution, 2 Σ (-1)^(k-1) exp(-2 k² x²); x with Stephens' correction (1970)."""
    if x < 0.2:
        return 1.0
    terms = [2.0 * (1 if k % 2 else -1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)]
    return min(1.0, max(0.0, math.fsum(terms)))
