from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from darl_rerank.errors import InputError
from darl_rerank.evaluation.drift import kolmogorov, measure_drift


def test_traffic_like_the_held_out_pairs_has_not_drifted() -> None:
    rng = np.random.default_rng(0)
    novelty = rng.uniform(0, 100, 2000)
    found = measure_drift(novelty, np.repeat(np.arange(200), 10), 2000)
    assert not found.drifted
    assert found.p_value > 0.05
    assert found.above == pytest.approx(0.05, abs=0.02)


def test_strange_traffic_has_and_its_strangest_queries_come_first() -> None:
    rng = np.random.default_rng(0)
    queries = np.repeat([f"q{i:02}" for i in range(40)], 5)
    novelty = np.clip(60 + np.repeat(np.arange(40), 5) + rng.uniform(-3, 3, 200), 0, 100)
    found = measure_drift(novelty, queries, 500)
    assert found.drifted
    assert found.p_value < 1e-6
    assert [qid for qid, _ in found.strangest[:2]] == ["q39", "q38"]
    assert found.above == pytest.approx((novelty > 95).mean())
    assert measure_drift(100 - novelty, queries, 500).drifted is False


def test_a_few_queries_are_not_enough_to_say_so() -> None:
    # The pairs of one query are one observation, however many they are.
    found = measure_drift(np.full(300, 90.0), np.repeat([0, 1], 150), 1000)
    assert found.above == 0
    assert not found.drifted


def test_distance_and_probability_are_those_of_the_test() -> None:
    values = np.random.default_rng(1).uniform(20, 100, 80)
    found = measure_drift(values, np.arange(80), 10**9)
    expected = stats.kstest(values / 100, "uniform")
    assert found.distance == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.1)
    assert kolmogorov(0.9) == pytest.approx(stats.kstwobign.sf(0.9))
    assert kolmogorov(0.0) == 1.0


def test_what_is_no_novelty_is_refused() -> None:
    with pytest.raises(InputError, match="some pairs"):
        measure_drift(np.zeros(0), np.zeros(0), 100)
    with pytest.raises(InputError, match="percentile"):
        measure_drift(np.array([101.0]), np.array([1]), 100)
