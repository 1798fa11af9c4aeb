"""Ways to choose which unlabelled pairs to have labelled, behind one signature and registered by name.

The full method is "dasa" (distribution-aware sample augmentation); the rest are its two ablations and the baselines it
is compared with at an equal budget. The idea of DASA is from Liu et al. (arXiv 2412.12504); the formulas are from the
sources named here and in `coverage`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..recipe.settings import SelectionSettings
from .candidates import Candidates
from .coverage import Coverage, Farthest, QueryCap, Rows, lazy_greedy, take_in_order

# Where a pair counts as unlike the training set.
NOVEL = 95.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy chose.

    Attributes:
        rows: numbers of the chosen pairs, the first choice first; fewer than the budget if there are not as many.
        banded: whether the band was applied.
        notes: figures of the strategy's own for the summary, JSON types.
    """

    rows: Rows
    banded: bool = False
    notes: dict[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    """Chooses at most `budget` of the candidates; the same candidates, budget and settings give the same choice."""

    def __call__(self, candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice: ...


def random(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """Pairs drawn at random, every pair as likely as any other: what a selection has to beat."""
    order = np.random.default_rng(settings.seed).permutation(len(candidates))
    return Choice(take_in_order(order, budget, QueryCap(candidates.queries, settings.per_query)))


def novel(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """Pairs past the 95th novelty percentile at random, then the others at random.

    For labels of what the training set lacks as they come, to calibrate on: the most novel of all are no fair sample
    of such pairs (docs/rare-shift.md).
    """
    order = np.random.default_rng(settings.seed).permutation(len(candidates))
    order = order[np.argsort(candidates.novelty[order] < NOVEL, kind="stable")]
    return Choice(take_in_order(order, budget, QueryCap(candidates.queries, settings.per_query)))


def uncertainty(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """The pairs whose grade distribution has the highest entropy (Settles, "Active Learning Literature", 2009)."""
    return _highest(candidates.uncertainty, candidates, budget, settings)


def mahalanobis(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """The pairs of the largest Mahalanobis distance to the training set (Lee et al., NeurIPS 2018)."""
    return _highest(candidates.mahalanobis, candidates, budget, settings)


def knn(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """The pairs whose k-th nearest training pair is farthest away (Sun et al., ICML 2022)."""
    return _highest(candidates.neighbour, candidates, budget, settings)


def kcenter(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """Again and again the pair farthest from all training and chosen pairs (Sener and Savarese, ICLR 2018)."""
    farthest = Farthest(candidates.positions, candidates.training)
    rows = lazy_greedy(
        np.arange(len(candidates)),
        farthest.distance.copy(),
        budget,
        QueryCap(candidates.queries, settings.per_query),
        farthest.value,
        farthest.choose,
    )
    return Choice(rows)


def dasa(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """The near-out-of-distribution band, in it the pairs that cover its uncovered, uncertain mass."""
    return _cover(np.flatnonzero(settings.in_band(candidates.novelty)), candidates, budget, settings, banded=True)


def dasa_without_band(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """DASA's coverage over the whole pool."""
    return _cover(np.arange(len(candidates)), candidates, budget, settings, banded=False)


def dasa_without_coverage(candidates: Candidates, budget: int, settings: SelectionSettings) -> Choice:
    """DASA's band, in it the most uncertain pairs."""
    inside = settings.in_band(candidates.novelty)
    rows = _highest(np.where(inside, candidates.uncertainty, -1), candidates, budget, settings, inside).rows
    return Choice(rows, banded=True)


def _highest(
    values: NDArray[np.float32],
    candidates: Candidates,
    budget: int,
    settings: SelectionSettings,
    inside: NDArray[np.bool_] | None = None,
) -> Choice:
    order = np.argsort(-values, kind="stable")
    if inside is not None:
        order = order[inside[order]]
    return Choice(take_in_order(order, budget, QueryCap(candidates.queries, settings.per_query)))


def _cover(rows: Rows, candidates: Candidates, budget: int, settings: SelectionSettings, *, banded: bool) -> Choice:
    rng = np.random.default_rng(settings.seed)
    few = len(rows) <= settings.targets
    targets = rows if few else np.sort(rng.choice(rows, settings.targets, replace=False))
    half_distance = settings.half_distance or candidates.typical_distance
    coverage = Coverage(
        _positions(candidates, targets), candidates.uncertainty[targets], candidates.training, half_distance
    )
    before = coverage.share
    chosen = lazy_greedy(
        rows,
        _gains(coverage, candidates, rows),
        budget,
        QueryCap(candidates.queries, settings.per_query),
        lambda some: coverage.gains(_positions(candidates, some)),
        lambda row: coverage.add(np.asarray(candidates.positions[row], dtype=np.float32)),
    )
    notes = {"half_distance": half_distance, "covered_before": before, "covered_after": coverage.share}
    return Choice(chosen, banded, notes)


def _positions(candidates: Candidates, rows: Rows) -> NDArray[np.float32]:
    return np.asarray(candidates.positions[rows], dtype=np.float32)


def _gains(coverage: Coverage, candidates: Candidates, rows: Rows) -> NDArray[np.float32]:
    """First gains of all rows, a piece at a time: the positions may be a memory map larger than memory."""
    pieces = [
        coverage.gains(_positions(candidates, rows[start : start + 16384])) for start in range(0, len(rows), 16384)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


STRATEGIES: dict[str, Strategy] = {
    "dasa": dasa,
    "dasa-without-band": dasa_without_band,
    "dasa-without-coverage": dasa_without_coverage,
    "random": random,
    "novel": novel,
    "uncertainty": uncertainty,
    "mahalanobis": mahalanobis,
    "knn": knn,
    "kcenter": kcenter,
}
