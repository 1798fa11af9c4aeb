"""Novelty scores against scikit-learn, and the FAISS search against the exact one in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from darl_rerank import novelty as module
from darl_rerank.novelty import MAHALANOBIS, NEIGHBOUR, NoveltyModel, PercentileTable, fit_novelty, unit_rows

FEATURES = 40


@pytest.fixture(scope="module")
def data() -> dict[str, NDArray[Any]]:
    """Pairs of 5 topics, their grades visible in the features."""
    rng = np.random.default_rng(0)
    topics = 2 * rng.normal(size=(5, FEATURES))

    def pairs(n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        grades = rng.integers(3, size=n)
        rows = topics[rng.integers(5, size=n)] + rng.normal(size=(n, FEATURES))
        rows[:, 0] += 4 * grades
        return unit_rows(rows.astype(np.float32)), grades

    training, grades = pairs(600)
    return {"training": training, "grades": grades, "held_out": pairs(300)[0], "new": pairs(200)[0]}


@pytest.fixture(scope="module")
def model(data: dict[str, NDArray[Any]]) -> NoveltyModel:
    return fit_novelty(data["training"], data["grades"], data["held_out"], dimensions=20, k=7)


def test_relative_mahalanobis_is_scikit_learns(data: dict[str, NDArray[Any]], model: NoveltyModel) -> None:
    known, new, grades = model.project(data["training"]), model.project(data["new"]), data["grades"]
    means = np.stack([known[grades == g].mean(0) for g in range(3)])
    tied = LedoitWolf(assume_centered=True).fit(known - means[grades])
    nearest = np.min([tied.mahalanobis(new - mean) for mean in means], axis=0)
    background = LedoitWolf().fit(known).mahalanobis(new)
    np.testing.assert_allclose(model.raw(data["new"])[MAHALANOBIS], nearest - background, rtol=1e-3, atol=1e-3)


def test_neighbour_distance_is_scikit_learns(data: dict[str, NDArray[Any]], model: NoveltyModel) -> None:
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(model.project(data["training"]))
    expected = search.kneighbors(model.project(data["new"]))[0][:, -1]
    # The bank is kept in float16.
    np.testing.assert_allclose(model.raw(data["new"])[NEIGHBOUR], expected, atol=1e-3)


def test_a_large_bank_is_searched_by_faiss_with_the_same_result(
    data: dict[str, NDArray[Any]], model: NoveltyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    exact = model.raw(data["new"])[NEIGHBOUR]
    monkeypatch.setattr(module, "_LARGE_BANK", 1)
    assert model._faiss_bank is not None
    np.testing.assert_allclose(model.raw(data["new"])[NEIGHBOUR], exact, atol=1e-6)


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
    away = unit_rows((2 * rng.normal(size=FEATURES) + rng.normal(size=(100, FEATURES))).astype(np.float32))
    search = model.raw(away)[NEIGHBOUR]
    assert np.median(search) > np.quantile(model.raw(data["held_out"])[NEIGHBOUR], 0.9)
