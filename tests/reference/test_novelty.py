"""Novelty scores against scikit-learn and FAISS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from darl_rerank.model.novelty import MAHALANOBIS, NEIGHBOUR, NoveltyModel, fit_novelty
from darl_rerank.model.percentiles import PercentileTable

FEATURES = 40


def unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


@pytest.fixture(scope="module")
def data() -> dict[str, NDArray[Any]]:
    """Pairs of 5 topics."""
    rng = np.random.default_rng(0)
    topics = 2 * rng.normal(size=(5, FEATURES))

    def pairs(n: int) -> NDArray[Any]:
        return unit_rows(topics[rng.integers(5, size=n)] + rng.normal(size=(n, FEATURES)))

    return {"training": pairs(600), "held_out": pairs(300), "new": pairs(200)}


@pytest.fixture(scope="module")
def model(data: dict[str, NDArray[Any]]) -> NoveltyModel:
    return fit_novelty(data["training"], data["held_out"], dimensions=20, k=7)


def test_mahalanobis_with_all_directions_is_scikit_learns(data: dict[str, NDArray[Any]]) -> None:
    model = fit_novelty(data["training"], data["held_out"], dimensions=FEATURES, variance=1.0)
    expected = LedoitWolf().fit(data["training"].astype(np.float64)).mahalanobis(data["new"])
    # The components are kept in float16.
    np.testing.assert_allclose(model.raw(data["new"])[MAHALANOBIS], expected, rtol=1e-3)


def test_mahalanobis_with_some_directions_is_that_of_probabilistic_pca(
    data: dict[str, NDArray[Any]], model: NoveltyModel
) -> None:
    pca = PCA(20, svd_solver="full").fit(data["training"].astype(np.float64))
    shrunk = LedoitWolf().fit(data["training"].astype(np.float64))
    # scikit-learn's model of the same rank, with the shrunk eigenvalues in the place of its own.
    values = np.sort(np.linalg.eigvalsh(shrunk.covariance_))[::-1]
    pca.explained_variance_, pca.noise_variance_ = values[:20], values[20:].mean()
    centred = data["new"] - pca.mean_
    expected = np.einsum("ij,jk,ik->i", centred, pca.get_precision(), centred)
    # What float16 components leave over counts as lying off them, where a unit costs more than along them.
    np.testing.assert_allclose(model.raw(data["new"])[MAHALANOBIS], expected, rtol=2e-3)


def test_neighbour_distance_is_scikit_learns(data: dict[str, NDArray[Any]], model: NoveltyModel) -> None:
    positions, rest = model.project(data["new"])
    search = NearestNeighbors(n_neighbors=7).fit(model.project(data["training"])[0])
    expected = np.square(search.kneighbors(positions)[0][:, -1]) / 2 + rest
    # The bank is kept in float16.
    np.testing.assert_allclose(model.raw(data["new"])[NEIGHBOUR], expected, atol=1e-3)


def test_neighbour_distance_of_unit_features_is_the_cosine_distance(data: dict[str, NDArray[Any]]) -> None:
    model = fit_novelty(data["training"], data["held_out"], dimensions=FEATURES, variance=1.0, k=7)
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(data["training"])
    expected = search.kneighbors(data["new"])[0][:, -1]
    np.testing.assert_allclose(model.raw(data["new"])[NEIGHBOUR], expected, atol=1e-3)


def test_neighbour_distance_is_that_of_faiss(data: dict[str, NDArray[Any]], model: NoveltyModel) -> None:
    faiss = pytest.importorskip("faiss")
    positions, rest = model.project(data["new"])
    index = faiss.IndexFlatL2(model.dimensions)
    index.add(model.bank.astype(np.float32))
    expected = index.search(positions, model.k)[0][:, -1] / 2 + rest
    np.testing.assert_allclose(model.raw(data["new"])[NEIGHBOUR], expected, atol=1e-6)


def test_percentiles_are_uniform_on_pairs_like_the_training_set(
    data: dict[str, NDArray[Any]], model: NoveltyModel
) -> None:
    percents = model.score(data["held_out"])
    np.testing.assert_allclose(np.quantile(percents, [0.1, 0.5, 0.9]), [10, 50, 90], atol=1.5)


def test_the_table_is_the_rank() -> None:
    scores = np.random.default_rng(0).normal(size=200)
    percents = PercentileTable.fit(scores)(scores)
    np.testing.assert_allclose(percents, 100 * (scores.argsort().argsort() + 1) / 201, atol=1e-9)


def test_a_new_topic_is_novel(data: dict[str, NDArray[Any]], model: NoveltyModel) -> None:
    rng = np.random.default_rng(9)
    away = unit_rows(2 * rng.normal(size=FEATURES) + rng.normal(size=(100, FEATURES)))
    for name, scores in model.raw(away).items():
        assert np.median(scores) > np.quantile(model.raw(data["held_out"])[name], 0.9)
