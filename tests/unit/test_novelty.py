"""Novelty models: what they keep, what they refuse, and percentiles beyond the held-out pairs."""

from __future__ import annotations

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.model.novelty import NoveltyModel, fit_novelty, kth_smallest, middle_layer_weights
from darl_rerank.model.percentiles import PercentileTable


@pytest.fixture(scope="module")
def model() -> NoveltyModel:
    rng = np.random.default_rng(0)
    return fit_novelty(rng.normal(size=(200, 16)), rng.normal(size=(100, 16)), k=5)


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
    arrays = rng.normal(size=(300, 8)), rng.normal(size=(50, 8))
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
        fit_novelty(np.zeros((5, 4)), np.zeros((5, 4)))
    for weights in (np.ones(3), -np.ones(4), np.zeros(4)):
        with pytest.raises(InputError, match="weights must be 4 numbers"):
            fit_novelty(np.zeros((50, 4)), np.zeros((5, 4)), weights=weights)


def test_features_count_by_their_weights() -> None:
    rng = np.random.default_rng(4)
    features, held_out = rng.normal(size=(200, 12)), rng.normal(size=(100, 12))
    weights = np.repeat(np.array([0.5, 1.0, 0.0], dtype=np.float32), 4)
    model = fit_novelty(features, held_out, weights=weights)
    other = held_out.copy()
    other[:, 8:] = 100.0
    np.testing.assert_array_equal(model.score(other), model.score(held_out))
    assert model.feature_size == 12
    scaled = fit_novelty((features * weights)[:, :8], (held_out * weights)[:, :8])
    np.testing.assert_allclose(scaled.score((held_out * weights)[:, :8]), model.score(held_out), atol=0.5)


def test_the_middle_layers_last_token_counts() -> None:
    weights = middle_layer_weights(1728)
    assert weights.shape == (1728,)
    assert (weights[576:1152] == 1).all()
    assert not weights[:576].any()
    assert not weights[1152:].any()


def test_a_pair_off_the_kept_directions_is_strange() -> None:
    rng = np.random.default_rng(5)
    axes = np.diag([4.0] * 3 + [0.1] * 9)
    model = fit_novelty(rng.normal(size=(400, 12)) @ axes, rng.normal(size=(200, 12)) @ axes, variance=0.95)
    assert model.dimensions == 3
    pairs = rng.normal(size=(50, 12)) @ axes
    pairs[:, 7] += 2.0
    for name, scores in model.raw(pairs).items():
        assert (scores > np.asarray(model.raw(pairs - 2 * np.eye(12)[7])[name])).all()
    assert model.score(pairs).min() > 90


def test_training_pairs_without_any_variance_have_finite_novelty() -> None:
    model = fit_novelty(np.ones((30, 4)), np.ones((20, 4)))
    assert np.isfinite(model.score(np.array([[1.0, 1, 1, 1], [1, 1, 1, 2]]))).all()


@pytest.mark.parametrize("columns", [5, 1999, 2000, 2049])
def test_the_kth_smallest_is_that_of_a_sorted_row(columns: int) -> None:
    values = np.random.default_rng(6).integers(500, size=(40, columns)).astype(np.float32)
    for k in (1, 3, 5):
        np.testing.assert_array_equal(kth_smallest(values, k), np.sort(values, axis=1)[:, k - 1])
