"""The measures by which an export is compared with torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from darl_rerank.export.parity import compare, kendall_tau

from darl_rerank.results import PairScores
from darl_rerank.trec.graded_pairs import GradedPair


def scores(values: list[float]) -> PairScores:
    n = len(values)
    score = np.array(values)
    probabilities = np.stack([1 - score / 3, score / 3], axis=1)
    return PairScores(
        logits=np.zeros((n, 2), dtype=np.float32), probabilities=probabilities, score=score,
        grade=np.zeros(n, dtype=np.intp), novelty=None, features=None, truncated=np.zeros(n, dtype=bool),
    )  # fmt: skip


def pairs(grades: dict[str, list[int]]) -> list[GradedPair]:
    return [GradedPair(q, f"{q}{i}", g, None, q) for q, found in grades.items() for i, g in enumerate(found)]


def test_tau_counts_ties_on_both_sides() -> None:
    # Of the 6 pairs 4 agree and 1 disagrees; 1 is tied in the first: (4 - 1) / sqrt(5 · 6).
    assert kendall_tau(np.array([1, 1, 2, 3]), np.array([1, 2, 4, 3])) == pytest.approx(3 / np.sqrt(30))
    assert kendall_tau(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 1.0


def test_ndcg_is_over_queries_with_a_relevant_document_and_ties_keep_their_order() -> None:
    graded = pairs({"a": [0, 2, 1], "none": [0, 0]})
    first, second = scores([1, 3, 2, 1, 2]), scores([2, 2, 1, 2, 1])
    discount = 1 / np.log2([2, 3, 4])
    ideal = 2 * discount[0] + discount[1]
    tied = 2 * discount[1] + discount[2]
    assert compare(graded, first, second).ndcg_difference == pytest.approx(1 - tied / ideal)
    assert compare(graded, first, first).ndcg_difference == 0
    assert compare([replace(pair, grade=0) for pair in graded], first, second).ndcg_difference is None
    assert compare([replace(pair, grade=None) for pair in graded], first, second).ndcg_difference is None
