"""The weight of the model's order in a fusion with the first stage's."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.model.decisions import FusionWeight
from darl_rerank.trec.fusion import fuse_scores

Floats = NDArray[np.float64]
WEIGHTS = np.round(np.linspace(0, 1, 41), 3)
SLOPES = np.round(np.linspace(0, 0.6, 13), 3)


@dataclass(frozen=True, slots=True)
class FusionList:
    """One query's first-stage list of d documents, judged.

    Attributes:
        first: the first stage's scores, shape (d,), in its order.
        score: the model's, shape (d,).
        novelty: the documents' mean, NaN if not known.
        measure: a permutation of the d documents, best first, to how good it is (nDCG@10).
    """

    first: Floats
    score: Floats
    novelty: float
    measure: Callable[[NDArray[np.intp]], float]


def fit_fusion(lists: Mapping[str, Sequence[FusionList]], *, with_novelty: bool = True) -> FusionWeight:
    """The weight and its slope in novelty that lose least against each set's own best weight.

    A set is what one first stage found on one collection. One weight can't be best for all: BM25 is worth less beside
    the model than a trained retriever. What is minimised is the root mean square over sets of the regret, the best
    constant weight's mean measure on that set minus this one's, so that a great loss anywhere counts more than small
    gains elsewhere. Of equal ones the smallest slope is taken.

    Args:
        lists: queries by set.
        with_novelty: False to fit a constant.

    Raises:
        InputError: no set, or an empty one.
    """
    if not lists or not all(lists.values()):
        raise InputError("a fusion is fitted on sets of judged lists, none of them empty")
    tables = {name: _table(found) for name, found in lists.items()}
    slopes = SLOPES if with_novelty else SLOPES[:1]
    tried = [FusionWeight(float(weight), float(slope)) for slope in slopes for weight in WEIGHTS]
    regrets = np.array([[_regret(weight, *tables[name]) for name in lists] for weight in tried])
    best = tried[int(np.sqrt(np.square(regrets).mean(axis=1)).round(6).argmin())]
    facts = {
        "sets": {name: len(found) for name, found in lists.items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return FusionWeight(best.weight, best.novelty_slope, facts)


def _table(lists: Sequence[FusionList]) -> tuple[Floats, Floats]:
    """The measure of each query at each of WEIGHTS, shape (q, w), and the queries' novelty, shape (q,)."""
    values = [
        [found.measure(np.argsort(-fuse_scores(found.first, found.score, w), kind="stable")) for w in WEIGHTS]
        for found in lists
    ]
    return np.array(values), np.array([found.novelty for found in lists])


def _regret(weight: FusionWeight, values: Floats, novelty: Floats) -> float:
    used = np.array([weight.at(value) for value in novelty])
    at = [float(np.interp(w, WEIGHTS, row)) for w, row in zip(used, values, strict=True)]
    return float(values.mean(axis=0).max() - np.mean(at))
