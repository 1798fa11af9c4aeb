"""The measures by which an export is compared with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from darl_rerank.export.agreement import Agreement, counted
from darl_rerank.export.parity import compare, kendall_tau, violations, with_agreement
from numpy.typing import NDArray
from scipy.stats import binom

from darl_rerank.results import PairScores
from darl_rerank.trec.graded_pairs import GradedPair

CUTS = (0.5, 1.5, 2.5)


def scores(values: list[float]) -> PairScores:
    n = len(values)
    score = np.array(values)
    probabilities = np.stack([1 - score / 3, score / 3], axis=1)
    return PairScores(
        logits=np.zeros((n, 2), dtype=np.float32), probabilities=probabilities, score=score,
        grade=np.searchsorted(CUTS, score), novelty=None, features=None, truncated=np.zeros(n, dtype=bool),
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


def test_the_share_of_grades_has_an_interval() -> None:
    # Clopper and Pearson: 1 - .025 ** (1 / 64) below, nothing above.
    low, high = Agreement(64, 64).interval
    assert low == pytest.approx(0.025 ** (1 / 64))
    assert high == 1.0
    parity = with_agreement(compare(pairs({"a": [0, 1]}), scores([0, 1]), scores([0, 1])), Agreement(60, 64))
    assert violations(parity, {"grade_agreement": 0.97}) == [
        "grade agreement is 0.938 of 64 pairs, expected at least 0.97"
    ]
    assert parity.shown()["grade agreement interval"] == "0.848 to 0.983"


@pytest.mark.parametrize(
    ("same", "of", "expected"),
    # ln(.985 / .95) = .0362 a pair with the same grade, ln(.015 / .05) = -1.204 one with another, ln 9 = 2.197.
    [(64, 64, True), (63, 64, False), (61, 64, False), (60, 64, True), (127, 128, True), (126, 128, False)],
)
def test_when_enough_pairs_are_counted(same: int, of: int, expected: bool) -> None:
    assert Agreement(same, of).settled(0.97) == expected


def passes(share: float, parts: int, bound: float = 0.97) -> float:
    """The probability that an export that changes `share` of the grades passes, with up to `parts` of 64 pairs."""
    open_, passed = np.ones(1), 0.0  # by how many have changed
    for part in range(1, parts + 1):
        open_ = np.convolve(open_, binom.pmf(np.arange(65), 64, share))
        for changed in range(len(open_)):
            agreement = Agreement(64 * part - changed, 64 * part)
            if part == parts or agreement.settled(bound):
                passed += open_[changed] * (agreement.share >= bound)
                open_[changed] = 0.0
    return float(passed)


def test_how_sure_the_gate_is() -> None:
    """What docs/export.md says of it."""
    assert [round(passes(share, 4), 2) for share in (0.015, 0.05)] == [0.95, 0.08]
    assert [round(passes(share, 1), 2) for share in (0.015, 0.05)] == [0.75, 0.16]


def test_pairs_are_added_until_it_is_clear_and_torch_grades_those_next_to_a_cut() -> None:
    first = scores([1.0] * 62 + [1.49, 1.45]), scores([1.0] * 62 + [1.51, 1.45])
    # Nearer than .04 to a cut: one that changes, one that doesn't, one that is no number.
    part = [*[1.0] * 61, 1.53, 0.47, float("nan")]
    sample = pairs({"b": [0] * 64})
    asked: list[Sequence[GradedPair]] = []

    def by_torch(rows: Sequence[GradedPair]) -> NDArray[np.intp]:
        asked.append(rows)
        return scores([1.49, 0.48, 1.0]).grade

    found = counted(*first, [sample, sample], 0.97, CUTS, by_torch=by_torch, by_export=lambda _: scores(part))
    assert found == Agreement(63 + 62 + 62, 192)
    assert asked == [[sample[61], sample[62], sample[63]]] * 2
    # All alike: 64 are enough.
    assert counted(
        first[0], first[0], [sample], 0.97, CUTS, by_torch=by_torch, by_export=lambda _: scores(part)
    ) == Agreement(64, 64)
