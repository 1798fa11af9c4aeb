"""Is one run better than another? Paired tests over queries, and intervals of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# Sign vectors (or resamples) drawn at a time, to bound memory.
_BLOCK = 2000


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One run against a baseline, over the same queries.

    Attributes:
        difference: mean of run minus baseline.
        low, high: bounds of its 95 % interval, percentile bootstrap over queries.
        p: two-sided p-value of the paired randomisation test.
        wins, losses: queries on which the run is better, or worse.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


def paired_test(
    run: NDArray[np.float64], baseline: NDArray[np.float64], *, seed: int = 0, rounds: int = 20_000
) -> PairedTest:
    """Compare two systems by their values on the same queries, each of shape (queries,).

    The p-value is Fisher's randomisation test as Smucker et al. (CIKM 2007) recommend it: the share of random sign
    flips of the differences whose mean is at least as far from zero, the observed one counted.

    Raises:
        InputError: the shapes differ, or there are no queries.
    """
    if run.shape != baseline.shape or run.ndim != 1 or not run.size:
        raise InputError(f"expected two arrays of one value a query, got shapes {run.shape} and {baseline.shape}")
    differences = run - baseline
    observed = differences.mean()
    generator = np.random.default_rng(seed)
    extreme, means = 0, []
    for start in range(0, rounds, _BLOCK):
        count = min(_BLOCK, rounds - start)
        signs = generator.integers(0, 2, (count, differences.size), dtype=np.int8) * 2.0 - 1.0
        # The tolerance keeps sums that are equal but for rounding on the side of the observed one.
        extreme += int((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).sum())
        chosen = generator.integers(0, differences.size, (count, differences.size))
        means.append(differences[chosen].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return PairedTest(
        difference=float(observed),
        low=float(low),
        high=float(high),
        p=(extreme + 1) / (rounds + 1),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) for testing several hypotheses at once; order kept."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return [float(p) for p in corrected]
