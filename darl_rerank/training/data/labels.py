"""Labels of graded pairs as arrays, and samples of whole queries."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from darl_rerank.trec.graded_pairs import GradedPair


def label_matrix(pairs: Sequence[GradedPair], grades: int) -> NDArray[np.float32]:
    """Labels as probabilities, shape (n, K), one-hot for grades."""
    result = np.zeros((len(pairs), grades), dtype=np.float32)
    for row, pair in enumerate(pairs):
        if pair.probabilities is not None:
            result[row] = pair.probabilities
        elif pair.grade is not None:
            result[row, pair.grade] = 1
    return result


def hard_grades(pairs: Sequence[GradedPair]) -> NDArray[np.intp]:
    """The most probable grade of each labelled pair, shape (n,)."""
    return np.array([pair.hard_grade for pair in pairs], dtype=np.intp)


def sampled_queries(pairs: Sequence[GradedPair], most: int, seed: int) -> list[GradedPair]:
    """Whole queries, drawn at random, of about `most` pairs; all if there are no more."""
    if len(pairs) <= most:
        return list(pairs)
    order = sorted({pair.qid for pair in pairs})
    random.Random(seed).shuffle(order)
    kept = set(order[: max(1, round(len(order) * most / len(pairs)))])
    return [pair for pair in pairs if pair.qid in kept]


def numbered(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Equal keys as equal numbers, from 0 in the order in which they first occur."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
