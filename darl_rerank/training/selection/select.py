"""Choosing which pairs of an unlabelled pool to have labelled, with an account of what was cut and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError

from ..recipe.settings import DEFAULT_STRATEGY, SelectionSettings
from .candidates import Candidates
from .strategies import STRATEGIES, Choice

_NOVELTY_STEPS = (50.0, 80.0, 95.0, 99.0, 99.5)
# A pool like the training set has 0.5 % above the band, and junk is rare. A domain of its own can lie up there
# too: of a pool of questions, films and medicine 857 of 3,602 pairs do (results/study_shop_head.json).
_MUCH_ABOVE = 0.05
# Between these estimates of the new share labels of the new pairs give them a better calibration than random ones do.
# They were at true shares of 5 and 10 %; of 2 % it gained nothing, and of 30 % (18 to 22 % by estimate) a random draw
# has enough. Where novelty sees no shift the estimate still is up to 3 % (docs/rare-shift.md).
_RARE = (0.04, 0.15)


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen pairs of a pool.

    Attributes:
        rows: their numbers in the pool, the first choice first, shape (b,).
        above_band: numbers of the most novel pairs that the band cut off, the highest novelty first.
        summary: what the pool is like, what was cut and why; JSON types.
    """

    rows: NDArray[np.intp]
    above_band: NDArray[np.intp]
    summary: dict[str, Any]


def select(
    candidates: Candidates, budget: int, strategy: str = DEFAULT_STRATEGY, settings: SelectionSettings | None = None
) -> Selection:
    """Choose `budget` pairs of the pool.

    Args:
        candidates: from `describe_pool`.
        budget: how many pairs can be labelled.
        strategy: a name in `STRATEGIES`.
        settings: the defaults if None.

    Returns:
        the selection; it holds fewer pairs than the budget if band and cap leave no more. The summary says so under
        "warnings", and also if the band cut off so much at its upper end that it can't all be junk. Under "reason" it
        says why the strategy.

    Raises:
        InputError: an unknown strategy, or a budget below 1.
    """
    settings = settings or SelectionSettings()
    if strategy not in STRATEGIES:
        raise InputError(f"unknown selection strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    if budget < 1:
        raise InputError(f"the budget must be at least 1, got {budget}")
    choice = STRATEGIES[strategy](candidates, budget, settings)
    above = np.flatnonzero(candidates.novelty > settings.band[1]) if choice.banded else np.zeros(0, dtype=np.intp)
    above = above[np.argsort(-candidates.novelty[above], kind="stable")[:10]]
    return Selection(choice.rows, above, _summary(candidates, budget, strategy, settings, choice))


def estimated_share(novelty: NDArray[np.floating[Any]]) -> float:
    """The share of a pool that is unlike the training set, estimated from novelty percentiles.

    A pool of which a share π is new has at most (1 − π)(1 − t) + π of its pairs above the t-th percentile (Blanchard et
    al., "Semi-Supervised Novelty Detection", JMLR 2010), so π is at least (above − (1 − t)) / t.
    The largest of these over t from .5 to .99 is taken. It is too low where novelty does not see the shift;
    percentiles of few held-out pairs are rough and can make it some points too high, so that it is no bound.
    """
    steps = np.arange(0.5, 1.0, 0.01)
    above = np.array([(novelty > 100 * t).mean() for t in steps])
    return float(((above - (1 - steps)) / steps).max().clip(0))


def _reason(strategy: str, share: float) -> str:
    """Why this strategy, and which one the new pairs of the pool speak for; one line."""
    if strategy != DEFAULT_STRATEGY:
        return f"strategy {strategy}, as asked"
    reason = f"strategy {strategy}: no other is shown to train a better model"
    if _RARE[0] <= share <= _RARE[1]:
        reason += f"; about {share:.0%} of the pool is unlike the labelled set: to calibrate for it, "
        reason += "take the strategy novel"
    return reason


def _summary(
    candidates: Candidates, budget: int, strategy: str, settings: SelectionSettings, choice: Choice
) -> dict[str, Any]:
    novelty, rows = candidates.novelty, choice.rows
    share = estimated_share(novelty)
    low, high = settings.band
    below, above = int((novelty < low).sum()), int((novelty > high).sum())
    eligible = np.flatnonzero(settings.in_band(novelty)) if choice.banded else np.arange(len(candidates))
    beyond_cap = 0
    if settings.per_query is not None:
        of_query = np.bincount(candidates.queries[eligible])
        beyond_cap = int(np.maximum(of_query - settings.per_query, 0).sum())
    summary: dict[str, Any] = {
        "strategy": strategy,
        "reason": _reason(strategy, share),
        "settings": {
            "band": [low, high] if choice.banded else None,
            "per_query": settings.per_query,
            "targets": settings.targets,
            "seed": settings.seed,
        },
        "pool": {
            "pairs": len(candidates),
            "queries": len(np.unique(candidates.queries)),
            "training_pairs": len(candidates.training),
            # A pool like the training set would have 50 % above 50, 20 % above 80, and so on.
            "share_above_percentile": {f"{step:g}": float((novelty > step).mean()) for step in _NOVELTY_STEPS},
            "estimated_new_share": share,
            "mean_uncertainty": float(candidates.uncertainty.mean()),
        },
        "cut": {
            "below_band": below if choice.banded else 0,
            "above_band": above if choice.banded else 0,
            "beyond_cap": beyond_cap,
            "eligible": len(eligible) - beyond_cap,
        },
        "chosen": {
            "budget": budget,
            "pairs": len(rows),
            "queries": len(np.unique(candidates.queries[rows])),
            "mean_novelty": float(novelty[rows].mean()) if len(rows) else None,
            "mean_uncertainty": float(candidates.uncertainty[rows].mean()) if len(rows) else None,
            **choice.notes,
        },
        "warnings": [],
    }
    if len(rows) < budget:
        summary["warnings"].append(
            f"{len(rows)} of {budget} pairs were chosen: "
            + (f"{below} of {len(candidates)} lie below the band and {above} above it; " if choice.banded else "")
            + (f"{beyond_cap} more are beyond {settings.per_query} a query" if beyond_cap else "the pool has no more")
        )
    if not choice.banded and settings.band != SelectionSettings().band:
        summary["warnings"].append(f"the band has no effect on the strategy {strategy}")
    if choice.banded and above > _MUCH_ABOVE * len(candidates):
        summary["warnings"].append(
            f"{above} of {len(candidates)} pairs lie above the band ({high:g}) and were cut off, more than junk "
            "accounts for: they may be a domain of their own. Look at the most novel. A band up to 100 keeps them. "
            "In the study the strategy random ordered no worse in such a domain, and gave better probabilities there"
        )
    return summary
