"""The rule of early exits: so low a threshold that of what deserves a place at most a stated share leaves."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.decisions import Cut, Promise, reaches
from darl_rerank.model.exits import Exits

from ..model.temperature import fit_calibration
from .cuts import recall_threshold


def fit_exit_calibrations(
    exits: Exits,
    logits: Mapping[int, NDArray[np.floating[Any]]],
    labels: NDArray[Any],
    *,
    weights: NDArray[np.floating[Any]] | None = None,
) -> Exits:
    """The exits with a temperature and biases of their own; the rule, which belongs to the earlier ones, is left out.

    Biases, because an exit is asked how probable one grade is, and a weak one that has none gives all pairs the same.

    Args:
        exits: their heads.
        logits: grade logits of n pairs by the exit's layer, each (n, K).
        labels: grades, shape (n,), or probabilities, shape (n, K).
        weights: shape (n,), >= 0; all 1 if None.
    """
    heads = (
        replace(
            each,
            calibration=fit_calibration(logits[each.layer], labels, with_bias=True, weights=weights).calibration,
        )
        for each in exits.heads
    )
    return Exits(tuple(heads))


def fit_exit_rule(
    exits: Exits,
    logits: Mapping[int, NDArray[np.floating[Any]]],
    grades: NDArray[np.integer[Any]],
    queries: NDArray[Any],
    *,
    grade: int,
    share: float,
) -> Exits:
    """The exits with the rule under which the most pairs leave and at most `share` of those of `grade` or better.

    A pair leaves at some exit if the smallest of its probabilities there lies below the threshold, so the rule is a cut
    on that: conformal risk control as for `cuts.fit_cut`, in the mean over queries like these.

    Args:
        exits: with their calibrations.
        logits: grade logits of n pairs by the exit's layer, each (n, K).
        grades: true ones, shape (n,).
        queries: which query each pair belongs to, shape (n,).
        grade: the lowest that deserves a place, 1..K-1.
        share: above 0 and below 1.

    Raises:
        InputError: a share or grade that is none, no pair of that grade, or too few queries to promise anything.
    """
    if not 0 < share < 1:
        raise InputError(f"the share that may leave must be above 0 and below 1, got {share:g}")
    promise = Promise("recall", round(1 - share, 12), grade)
    reached = {each.layer: reaches(each.probabilities(logits[each.layer]), grade) for each in exits.heads}
    lowest = np.min(list(reached.values()), axis=0)
    relevant = np.asarray(grades) >= grade
    threshold, count = recall_threshold(promise, lowest, relevant, np.asarray(queries))
    left = lowest < threshold
    leaves_at: dict[str, float] = {}
    gone = np.zeros(len(lowest), dtype=bool)
    for layer, values in reached.items():
        now = (values < threshold) & ~gone
        leaves_at[str(layer)] = float(now.mean())
        gone |= now
    facts = {
        "queries": count, "pairs": len(lowest), "left": float(left.mean()), "left_by_layer": leaves_at,
        "relevant": int(relevant.sum()), "relevant_left": int((left & relevant).sum()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip
    return Exits(exits.heads, Cut(promise, threshold, None, facts))
