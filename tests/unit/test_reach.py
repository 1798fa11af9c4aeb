"""P(a further document reaches the top), on made-up lists."""

from __future__ import annotations

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.model.reach import STEP, Reach, fit_reach


def lists(count: int, *, falls: float, seed: int = 0) -> list[np.ndarray]:
    """Scores of 100 documents each, whose mean falls along the list."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=100) + generator.normal() - falls * np.arange(100) for _ in range(count)]


def test_the_probability_is_what_then_happens() -> None:
    reach = fit_reach(lists(150, falls=0.01))
    said, happened = [], []
    for scores in lists(150, falls=0.01, seed=1):
        for seen in range(20, 90, 5):
            said.append(reach.probability(scores[:seen], 10))
            happened.append((scores[seen : seen + STEP] > np.sort(scores[:seen])[-10]).mean())
    order = np.argsort(said)
    for part in np.array_split(order, 4):
        assert np.mean(np.array(said)[part]) == pytest.approx(np.mean(np.array(happened)[part]), abs=0.03)
    assert reach.slope < 0


def test_the_bound_keeps_nine_tenths_of_the_top() -> None:
    made = lists(100, falls=0.03)
    reach = fit_reach(made)
    assert reach.lists == 100

    def found(bound: float) -> float:
        shares = []
        for scores in made:
            seen = STEP
            while seen < len(scores) and reach.probability(scores[:seen], 10) > bound:
                seen += STEP
            whole = set(np.argsort(-scores)[:10])
            shares.append(len(whole & set(np.argsort(-scores[:seen])[:10])) / 10)
        return float(np.mean(shares))

    assert found(reach.bound) >= 0.9
    assert found(0.5) < 0.9


def test_with_fewer_documents_than_the_top_it_goes_on() -> None:
    assert Reach(0.0, -1.0, 0.03).probability(np.ones(9), 10) == 1.0
    assert Reach(0.0, -1.0, 0.03).probability(np.ones(40), 10) == pytest.approx(0.5)


def test_what_can_not_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="at least 10 lists of 20 documents or more, got 0"):
        fit_reach([np.ones(5)] * 30)
    with pytest.raises(InputError, match="finite"):
        fit_reach([np.full(50, np.nan)] * 30)
    with pytest.raises(InputError, match="expected intercept, slope and bound"):
        Reach.from_dict({"intercept": 1.0})
    with pytest.raises(InputError, match="bound between 0 and 1"):
        Reach(0.0, 0.0, 1.0)
    assert Reach.from_dict(Reach(1.0, -2.0, 0.1, 7).to_dict()) == Reach(1.0, -2.0, 0.1, 7)
