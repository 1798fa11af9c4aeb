"""Novelty models: what they keep, what they refuse, and percentiles beyond the held-out pairs."""

from __future__ import annotations

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.novelty import NoveltyModel, PercentileTable, fit_novelty


@pytest.fixture(scope="module")
def model() -> NoveltyModel:
    rng = np.random.default_rng(0)
    return fit_novelty(rng.normal(size=(200, 16)), rng.integers(3, size=200), rng.normal(size=(100, 16)), k=5)


def test_tensors_give_the_same_model(model: NoveltyModel) -> None:
    features = np.random.default_rng(1).normal(size=(50, 16))
    again = NoveltyModel.from_tensors(*model.to_tensors())
    np.testing.assert_array_equal(again.score(features), model.score(features))
    tensors, settings = model.to_tensors()
    del tensors["bank"]
    with pytest.raises(InputError, match="'bank' is missing"):
        NoveltyModel.from_tensors(tensors, settings)


def test_a_pairs_novelty_does_not_depend_on_the_others(model: NoveltyModel) -> None:
    features = np.random.default_rng(2).normal(size=(1500, 16))
    whole = model.score(features)
    np.testing.assert_allclose(
        np.concatenate([model.score(features[i : i + 1]) for i in range(20)]), whole[:20], atol=1e-3
    )
    assert ((whole > 0) & (whole < 100)).all()


def test_the_same_seed_gives_the_same_model() -> None:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(300, 8)), rng.integers(2, size=300), rng.normal(size=(50, 8))
    first, second = (fit_novelty(*arrays, bank_rows=100, fit_rows=200, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.bank, second.bank)
    assert len(first.bank) == 100


def test_pairs_stranger_than_all_held_out_ones_keep_their_order() -> None:
    table = PercentileTable.fit(np.arange(99.0))
    assert table(np.array([49.0])) == pytest.approx(50)
    beyond = table(np.array([98.0, 110, 1e3, 1e6]))
    assert (np.diff(beyond) > 0).all()
    assert beyond[-1] < 100
    assert 0 < table(np.array([-1e6]))[0] < 1


def test_faulty_features_are_refused(model: NoveltyModel) -> None:
    with pytest.raises(InputError, match=r"features must have shape \(n, 16\), got \(3, 4\)"):
        model.score(np.zeros((3, 4)))
    faulty = np.zeros((3, 16))
    faulty[2, 0] = np.nan
    with pytest.raises(InputError, match="features of row 2 are not finite"):
        model.score(faulty)
    with pytest.raises(InputError, match="more than k = 10"):
        fit_novelty(np.zeros((5, 4)), np.zeros(5, dtype=int), np.zeros((5, 4)))
    with pytest.raises(InputError, match="grades must have shape"):
        fit_novelty(np.zeros((50, 4)), np.zeros(5, dtype=int), np.zeros((5, 4)))
