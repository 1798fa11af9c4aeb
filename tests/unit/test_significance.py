from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from darl_rerank.errors import InputError
from darl_rerank.evaluation.significance import holm, paired_test


def test_p_value_is_scipys() -> None:
    generator = np.random.default_rng(3)
    run, baseline = generator.random(40) + 0.1, generator.random(40)
    ours = paired_test(run, baseline, seed=1)
    theirs = stats.permutation_test(
        (run, baseline), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(2),
    )  # fmt: skip
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.01)
    interval = stats.bootstrap((run - baseline,), np.mean, method="percentile", n_resamples=20_000, rng=generator)
    assert (ours.low, ours.high) == pytest.approx(tuple(interval.confidence_interval), abs=0.005)


def test_equal_runs_do_not_differ() -> None:
    values = np.linspace(0, 1, 10)
    result = paired_test(values, values)
    assert (result.difference, result.p, result.wins, result.losses) == (0.0, 1.0, 0, 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shapes"):
        paired_test(np.zeros(3), np.zeros(4))
