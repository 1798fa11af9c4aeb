"""Measures of grades, calibration and novelty against scikit-learn, SciPy and ir-measures, weighted and not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from sklearn import metrics

from darl_rerank.evaluation import detection, grading, reliability
from darl_rerank.evaluation.pairs import ndcg_per_query
from darl_rerank.evaluation.ranking import ndcg

K = 4


@pytest.fixture(params=[0, 1, 2])
def data(request: pytest.FixtureRequest) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Labels, distributions, scores full of ties, and weights as a bootstrap draws them."""
    rng = np.random.default_rng(request.param)
    labels = rng.integers(K, size=300)
    probabilities = rng.dirichlet(np.ones(K), size=300)
    scores = np.round(probabilities @ np.arange(K), 1)
    return labels, probabilities, scores, rng.multinomial(300, np.full(300, 1 / 300))


def test_grades(data: Any) -> None:
    labels, probabilities, _, weights = data
    chosen = probabilities.argmax(1)
    for w in (None, weights):
        counts = grading.confusion(labels, chosen, K, w)
        np.testing.assert_allclose(counts, metrics.confusion_matrix(labels, chosen, sample_weight=w))
        assert grading.accuracy(counts) == pytest.approx(metrics.accuracy_score(labels, chosen, sample_weight=w))
        np.testing.assert_allclose(
            grading.f1_per_grade(counts), metrics.f1_score(labels, chosen, average=None, sample_weight=w)
        )
        assert grading.macro_f1(counts) == pytest.approx(
            metrics.f1_score(labels, chosen, average="macro", sample_weight=w)
        )
        assert grading.quadratic_weighted_kappa(counts) == pytest.approx(
            metrics.cohen_kappa_score(labels, chosen, weights="quadratic", sample_weight=w)
        )


def test_scores(data: Any) -> None:
    labels, _, scores, weights = data
    copies = np.repeat(np.arange(300), weights)
    assert grading.spearman(labels, scores) == pytest.approx(spearmanr(labels, scores).statistic)
    assert grading.spearman(labels, scores, weights) == pytest.approx(
        spearmanr(labels[copies], scores[copies]).statistic
    )
    for cut in range(1, K):
        for w in (None, weights):
            expected = metrics.roc_auc_score(labels >= cut, scores, sample_weight=w)
            assert grading.area_at_cut(labels, scores, cut, w) == pytest.approx(expected)


def test_likelihood_and_brier(data: Any) -> None:
    labels, probabilities, _, weights = data
    for w in (None, weights):
        expected = metrics.log_loss(labels, probabilities, labels=range(K), sample_weight=w)
        assert reliability.negative_log_likelihood(labels, probabilities, w) == pytest.approx(expected)
        # The ranked probability score is a sum of Brier scores, one for each cut.
        briers = [
            metrics.brier_score_loss(labels <= j, probabilities.cumsum(1)[:, j].clip(0, 1), sample_weight=w)
            for j in range(K - 1)
        ]
        assert reliability.ranked_probability_score(labels, probabilities, w) == pytest.approx(sum(briers))


def test_reliability_curves_are_scikit_learns(data: Any) -> None:
    from sklearn.calibration import calibration_curve

    labels, probabilities, _, _ = data
    for grade in range(K):
        ours = reliability.reliability_curve(labels, probabilities, grade, bins=10)
        frequency, confidence = calibration_curve(labels == grade, probabilities[:, grade], n_bins=10)
        np.testing.assert_allclose(ours["frequency"], frequency)
        np.testing.assert_allclose(ours["confidence"], confidence)
        gaps = np.abs(np.array(ours["frequency"]) - ours["confidence"])
        expected = (gaps * ours["count"]).sum() / len(labels)
        found = reliability.classwise_calibration_error(labels, probabilities, bins=10)[grade]
        assert found == pytest.approx(expected)


def test_weights_are_copies(data: Any) -> None:
    """Measures without a weighted reference: a weight of 2 is a pair given twice."""
    labels, probabilities, _, weights = data
    copies = np.repeat(np.arange(300), weights)
    for measure in (
        reliability.area_under_risk_coverage,
        reliability.mass_above,
        lambda y, p, w=None: reliability.expected_calibration_error(y, p, weights=w),
    ):
        assert measure(labels, probabilities, weights) == pytest.approx(measure(labels[copies], probabilities[copies]))
        both = measure(labels, probabilities, np.stack([weights, np.ones(300)]))
        np.testing.assert_allclose(both, [measure(labels, probabilities, weights), measure(labels, probabilities)])


def test_risk_coverage_by_loops(data: Any) -> None:
    labels, probabilities, _, _ = data
    wrong = (probabilities.argmax(1) != labels)[np.argsort(-probabilities.max(1))]
    expected = np.mean([wrong[: kept + 1].mean() for kept in range(len(wrong))])
    assert reliability.area_under_risk_coverage(labels, probabilities) == pytest.approx(expected)


def test_novelty_measures(data: Any) -> None:
    labels, _, scores, weights = data
    outside = labels >= 2
    for w in (None, weights):
        assert detection.auroc(outside, scores, w) == pytest.approx(
            metrics.roc_auc_score(outside, scores, sample_weight=w)
        )
        false, true, _ = metrics.roc_curve(outside, scores, sample_weight=w, drop_intermediate=False)
        expected = false[np.flatnonzero(true >= 0.95 - 1e-12)[0]]
        assert detection.fpr_at_recall(outside, scores, w) == pytest.approx(expected)


def test_ndcg_is_ir_measures() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(K, size=400), rng.permutation(400) / 400
    queries = np.repeat(np.arange(20), 20)
    ours = ndcg_per_query(labels, scores, np.arange(K), queries)
    qrels = {str(q): {str(i): int(labels[i]) for i in np.flatnonzero(queries == q)} for q in range(20)}
    run = {q: {i: float(scores[int(i)]) for i in grades} for q, grades in qrels.items()}
    for q, expected in ndcg(qrels, run, 10).items():
        assert ours[queries == int(q)] == pytest.approx(expected)


def test_mid_ranks_are_scipys() -> None:
    values = np.random.default_rng(0).integers(9, size=50)
    np.testing.assert_allclose(grading._mid_ranks(values, np.ones(50)), rankdata(values))
