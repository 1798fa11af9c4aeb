"""Selection strategies on synthetic pools whose right choice is known."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from darl_rerank.cli.select import select as select_command
from darl_rerank.errors import InputError
from darl_rerank.model.novelty import fit_novelty
from darl_rerank.training.recipe.settings import DEFAULT_STRATEGY, SelectionSettings, SelectStage
from darl_rerank.training.selection.candidates import Candidates, describe_pool, normalised_entropy
from darl_rerank.training.selection.coverage import Coverage, Farthest, QueryCap, lazy_greedy
from darl_rerank.training.selection.select import estimated_share, select
from darl_rerank.training.selection.select_pairs import select_pairs
from darl_rerank.training.selection.strategies import STRATEGIES

DIMENSIONS = 12


def unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def cluster(rng: np.random.Generator, centre: NDArray[Any], rows: int, spread: float = 0.1) -> NDArray[np.float32]:
    return unit_rows(centre + spread * rng.normal(size=(rows, DIMENSIONS)))


def candidates_of(
    directions: NDArray[Any], *, training: NDArray[Any] | None = None, queries: Any = None, **values: Any
) -> Candidates:
    n = len(directions)
    arrays = {name: np.zeros(n, dtype=np.float32) for name in ("novelty", "mahalanobis", "neighbour")}
    arrays["uncertainty"] = np.ones(n, dtype=np.float32)
    arrays |= {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}
    return Candidates(
        positions=unit_rows(directions).astype(np.float16),
        training=np.zeros((0, directions.shape[1]), np.float32) if training is None else training,
        queries=np.arange(n, dtype=np.int32) if queries is None else np.asarray(queries, dtype=np.int32),
        typical_distance=0.1,
        **arrays,
    )


@pytest.fixture
def pool() -> Candidates:
    """300 pairs, half of them in the band, of 60 queries, with random values."""
    rng = np.random.default_rng(0)
    return candidates_of(
        rng.normal(size=(300, DIMENSIONS)),
        training=cluster(rng, rng.normal(size=DIMENSIONS), 40),
        queries=rng.integers(60, size=300),
        novelty=rng.uniform(60, 100, size=300),
        mahalanobis=rng.normal(size=300),
        neighbour=rng.uniform(0, 1, size=300),
        uncertainty=rng.uniform(0, 1, size=300),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_budget_and_cap_and_repeats_itself(pool: Candidates, strategy: str) -> None:
    settings = SelectionSettings(per_query=2)
    found = select(pool, 40, strategy, settings)
    assert len(found.rows) == len(set(found.rows.tolist())) == 40
    assert np.bincount(pool.queries[found.rows]).max() <= 2
    np.testing.assert_array_equal(found.rows, select(pool, 40, strategy, settings).rows)
    assert found.summary["chosen"]["pairs"] == 40
    assert not any("were chosen" in warning for warning in found.summary["warnings"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_beyond_the_pool_takes_what_there_is_and_says_so(pool: Candidates, strategy: str) -> None:
    found = select(pool, 1000, strategy, SelectionSettings(per_query=None))
    eligible = int(SelectionSettings().in_band(pool.novelty).sum()) if found.summary["settings"]["band"] else 300
    assert len(found.rows) == eligible
    assert f"{eligible} of 1000 pairs were chosen" in found.summary["warnings"][0]


@pytest.mark.parametrize(("strategy", "field"), [("mahalanobis",) * 2, ("knn", "neighbour"), ("uncertainty",) * 2])
def test_score_baselines_take_the_highest(pool: Candidates, strategy: str, field: str) -> None:
    found = select(pool, 20, strategy, SelectionSettings(per_query=None)).rows
    np.testing.assert_array_equal(found, np.argsort(-getattr(pool, field))[:20])


@pytest.mark.parametrize("strategy", ["dasa", "dasa-without-coverage"])
def test_the_band_keeps_its_ends_and_counts_what_it_cuts(strategy: str) -> None:
    novelty = np.array([10, 79.9, 80, 90, 99.5, 99.6, 99.9])
    pool = candidates_of(np.random.default_rng(0).normal(size=(7, DIMENSIONS)), novelty=novelty)
    found = select(pool, 7, strategy)
    assert sorted(found.rows) == [2, 3, 4]
    assert found.above_band.tolist() == [6, 5]
    cut = found.summary["cut"]
    assert (cut["below_band"], cut["above_band"], cut["eligible"]) == (2, 2, 3)


@pytest.mark.parametrize(("above", "warned"), [(5, False), (6, True)])
def test_more_above_the_band_than_junk_accounts_for_is_warned_of(above: int, warned: bool) -> None:
    novelty = np.array([100.0] * above + [90.0] * (100 - above))
    pool = candidates_of(np.random.default_rng(0).normal(size=(100, DIMENSIONS)), novelty=novelty)
    settings = SelectionSettings(per_query=None)
    expected = [f"{above} of 100 pairs lie above the band (99.5)"] if warned else []
    assert [
        warning.split(" and were")[0] for warning in select(pool, 10, "dasa", settings).summary["warnings"]
    ] == expected
    assert select(pool, 10, "random", settings).summary["warnings"] == []
    whole = SelectionSettings(per_query=None, band=(80.0, 100.0))
    assert select(pool, 10, "dasa", whole).summary["warnings"] == []


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (0.1, True), (0.4, False)])
def test_the_default_is_a_random_draw_and_says_when_novel_pairs_are_worth_labelling(share: float, said: bool) -> None:
    rng = np.random.default_rng(5)
    new = rng.random(4000) < share
    novelty = np.where(new, rng.uniform(98, 100, 4000), rng.uniform(0, 100, 4000))
    pool = candidates_of(np.ones((4000, DIMENSIONS)), novelty=novelty)
    found = select(pool, 10)
    np.testing.assert_array_equal(found.rows, select(pool, 10, "random").rows)
    assert found.summary["reason"].startswith("strategy random: no other is shown to train a better model")
    assert ("to calibrate for it, take the strategy novel" in found.summary["reason"]) == said
    assert select(pool, 10, "novel").summary["reason"] == "strategy novel, as asked"


def test_every_door_has_the_same_default() -> None:
    (option,) = (each for each in select_command.params if each.name == "strategy")
    assert option.default == SelectStage(budget=1).strategy == DEFAULT_STRATEGY
    assert signature(select_pairs).parameters["strategy"].default == DEFAULT_STRATEGY


def test_a_band_that_has_no_effect_is_warned_of(pool: Candidates) -> None:
    settings = SelectionSettings(band=(60.0, 100.0))
    assert select(pool, 10, settings=settings).summary["warnings"] == ["the band has no effect on the strategy random"]
    assert select(pool, 10, "dasa", settings).summary["warnings"] == []


def test_random_draws_every_pair_alike() -> None:
    pool = candidates_of(np.eye(10))
    counts = np.zeros(10)
    for seed in range(400):
        counts[select(pool, 3, "random", SelectionSettings(seed=seed)).rows] += 1
    # 120 expected, standard deviation 9.
    assert counts.min() > 80
    assert counts.max() < 160


def test_novel_draws_every_pair_past_the_95th_percentile_alike_and_then_the_rest() -> None:
    pool = candidates_of(np.eye(10), novelty=[10, 20, 94.9, 95, 96, 97, 98, 99, 99.9, 100])
    counts = np.zeros(10)
    for seed in range(400):
        counts[select(pool, 3, "novel", SelectionSettings(seed=seed)).rows] += 1
    assert counts[:3].sum() == 0
    # 171 expected, standard deviation 10.
    assert counts[3:].min() > 130
    assert counts[3:].max() < 212
    assert sorted(select(pool, 9, "novel").rows[:7]) == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_the_share_of_new_pairs_is_bounded_from_below(share: float) -> None:
    new = round(1000 * share)
    novelty = np.concatenate([np.linspace(0, 100, 1000 - new), np.full(new, 100.0)])
    assert share - 0.02 <= estimated_share(novelty) <= share + 0.005


def test_coverage_goes_where_the_training_set_is_not() -> None:
    rng = np.random.default_rng(1)
    known, large, small = np.eye(DIMENSIONS)[:3]
    directions = np.concatenate([cluster(rng, known, 200), cluster(rng, large, 100), cluster(rng, small, 20)])
    pool = candidates_of(directions, training=cluster(rng, known, 50), novelty=np.full(320, 90.0))
    rows = select(pool, 2, "dasa").rows
    assert 200 <= rows[0] < 300, "the largest uncovered cluster first"
    assert rows[1] >= 300, "then the other, as the first is covered now"


def test_coverage_counts_uncertain_pairs_only() -> None:
    rng = np.random.default_rng(2)
    directions = np.concatenate([cluster(rng, axis, 50) for axis in np.eye(DIMENSIONS)[:2]])
    pool = candidates_of(directions, novelty=np.full(100, 90.0), uncertainty=np.repeat([0.0, 1.0], 50))
    assert select(pool, 1, "dasa").rows[0] >= 50


def plain_greedy(pool: Candidates, budget: int, per_query: int, rows: NDArray[Any]) -> list[int]:
    """Uncertainty coverage as its definition says it, in float64 and without any shortcut."""
    x = pool.positions.astype(np.float64)
    kernel = np.exp2(-cdist(x, x[rows], "sqeuclidean") / 2 / pool.typical_distance)
    covered = np.exp2(-cdist(pool.training, x[rows], "sqeuclidean") / 2 / pool.typical_distance).max(0)
    chosen: list[int] = []
    while len(chosen) < budget:
        gains = np.maximum(kernel - covered, 0) @ pool.uncertainty[rows]
        for row in sorted(rows, key=lambda r: -gains[r]):
            if row not in chosen and (pool.queries[chosen] == pool.queries[row]).sum() < per_query:
                chosen.append(int(row))
                covered = np.maximum(covered, kernel[row])
                break
    return chosen


def test_lazy_greedy_is_plain_greedy(pool: Candidates) -> None:
    rows = np.flatnonzero(SelectionSettings().in_band(pool.novelty))
    assert select(pool, 60, "dasa", SelectionSettings(per_query=2)).rows.tolist() == plain_greedy(pool, 60, 2, rows)


def test_k_centre_is_farthest_first(pool: Candidates) -> None:
    x = pool.positions.astype(np.float64)
    distance = cdist(x, pool.training, "sqeuclidean").min(axis=1) / 2
    expected: list[int] = []
    for _ in range(50):
        expected.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(x - x[expected[-1]]).sum(axis=1) / 2)
    assert select(pool, 50, "kcenter", SelectionSettings(per_query=None)).rows.tolist() == expected


def test_lazy_greedy_takes_the_first_of_equals() -> None:
    ones = np.ones(100, dtype=np.float32)
    cap = QueryCap(np.arange(100, dtype=np.int32), None)
    chosen = lazy_greedy(np.arange(100), ones, 5, cap, lambda rows: ones[rows], lambda row: None)
    assert chosen.tolist() == [0, 1, 2, 3, 4]


def test_coverage_of_a_training_pair_is_whole() -> None:
    x = np.eye(4, dtype=np.float32)
    coverage = Coverage(x, np.ones(4, dtype=np.float32), x[:2], 0.5)
    # Half the squared distance of orthogonal pairs is 1, two half-distances: a quarter covered.
    assert coverage.share == pytest.approx((1 + 1 + 0.25 + 0.25) / 4)
    np.testing.assert_allclose(coverage.gains(x), [0, 0, 0.75, 0.75], atol=1e-6)
    coverage.add(x[2])
    assert coverage.share == pytest.approx((1 + 1 + 1 + 0.25) / 4)


def test_farthest_without_training_starts_at_the_largest_distance() -> None:
    farthest = Farthest(np.eye(3, dtype=np.float16), np.zeros((0, 3), dtype=np.float32))
    assert farthest.distance.tolist() == [np.inf] * 3
    farthest.choose(1)
    np.testing.assert_allclose(farthest.value(np.array([0, 1])), [1, 0])


def test_describing_a_pool(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    topics, away = np.eye(DIMENSIONS)[:6], np.eye(DIMENSIONS)[6]
    training, held_out, alike = (cluster(rng, topics[rng.integers(6, size=n)], n) for n in (400, 1000, 1500))
    features = np.concatenate([alike, cluster(rng, away, 100)])
    probabilities = np.tile([0.5, 0.5], (1600, 1))
    novelty = fit_novelty(training, held_out)
    queries = [f"q{i // 4}" for i in range(1600)]
    on_disk = describe_pool(features, probabilities, queries, training, novelty, workspace=tmp_path, progress=False)
    in_memory = describe_pool(features, probabilities, queries, training, novelty, progress=False)
    np.testing.assert_array_equal(on_disk.positions, in_memory.positions)
    np.testing.assert_allclose(on_disk.novelty, novelty.score(features), rtol=1e-5)
    assert on_disk.queries.tolist() == [i // 4 for i in range(1600)]
    assert on_disk.uncertainty.tolist() == [1.0] * 1600
    assert on_disk.neighbour[1500:].min() > np.quantile(on_disk.neighbour[:1500], 0.99)
    assert 40 < np.median(on_disk.novelty[:1500]) < 60
    assert on_disk.typical_distance == pytest.approx(np.median(novelty.raw(held_out)["neighbour"]), rel=0.02)
    share = select(on_disk, 10, "random").summary["pool"]["share_above_percentile"]
    assert share["50"] == pytest.approx(0.53, abs=0.06)


def test_a_new_topic_is_novel() -> None:
    rng = np.random.default_rng(3)
    topics, away = np.eye(DIMENSIONS)[:6], np.eye(DIMENSIONS)[6]
    training, held_out = (cluster(rng, topics[rng.integers(6, size=n)], n) for n in (400, 300))
    novelty = fit_novelty(training, held_out)
    assert novelty.score(cluster(rng, away, 100)).min() > 95


def test_entropy_is_normalised() -> None:
    np.testing.assert_allclose(normalised_entropy(np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])), [0, 1], atol=1e-7)


def test_faulty_arguments_are_named(pool: Candidates) -> None:
    with pytest.raises(InputError, match="unknown selection strategy 'best'; known: dasa, dasa-without-band"):
        select(pool, 5, "best")
    with pytest.raises(InputError, match="the budget must be at least 1"):
        select(pool, 0)
    with pytest.raises(InputError, match=r"band: expected two rising .*; per_query: expected .*; targets: expected"):
        SelectionSettings(band=(90, 80), per_query=0, targets=0)
    rng = np.random.default_rng(0)
    novelty = fit_novelty(rng.normal(size=(50, 4)), rng.normal(size=(20, 4)))
    with pytest.raises(InputError, match="the pool is empty"):
        describe_pool(np.zeros((0, 4)), np.zeros((0, 2)), [], np.zeros((5, 4)), novelty)
    with pytest.raises(InputError, match="5 pairs, but 4 distributions and 3 queries"):
        describe_pool(np.zeros((5, 4)), np.zeros((4, 2)), [1, 2, 3], np.zeros((5, 4)), novelty)
