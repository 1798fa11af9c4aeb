from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.evaluation.grading import confusion, quadratic_weighted_kappa
from darl_rerank.model.calibration import Calibration, estimate_prevalence, softmax
from darl_rerank.model.decisions import Cut, Decisions, FusionWeight, GradeCuts, Promise, grade_above_lowest
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.training.decisions.cuts import fit_cut, hoeffding_bentkus, queries_needed
from darl_rerank.training.decisions.fusion import FusionList, fit_fusion
from darl_rerank.training.decisions.grades import fit_grade_cuts
from darl_rerank.trec.fusion import fuse_scores

SCALE = RelevanceScale.named("trec4")


def traffic(
    queries: int, documents: int = 20, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Scores, grades and queries of made-up pairs, whose score rises with the grade."""
    rng = np.random.default_rng(seed)
    grade = rng.choice(4, size=queries * documents, p=[0.5, 0.25, 0.15, 0.1])
    score = np.clip(grade * 0.6 + rng.normal(0, 0.5, len(grade)) + 0.3, 0, 3)
    return score, grade.astype(np.intp), np.repeat(np.arange(queries), documents)


def distributions(score: NDArray[np.float64]) -> NDArray[np.float64]:
    return softmax(-2 * np.abs(score[:, None] - np.arange(4)))


class TestGrades:
    def test_without_a_fit_the_grade_is_the_one_of_the_nearest_gain(self) -> None:
        cuts = GradeCuts.nearest(SCALE)
        assert cuts.points == (0.5, 1.5, 2.5)
        assert cuts.grades(np.array([0.0, 0.49, 0.5, 1.4, 2.6, np.nan])).tolist() == [0, 0, 1, 1, 3, -1]

    def test_fitted_cut_points_reach_the_kappa_of_an_exhaustive_search(self) -> None:
        score, grade, queries = traffic(60)
        found = fit_grade_cuts(score, grade, queries)

        def kappa(points: Any) -> float:
            return float(quadratic_weighted_kappa(confusion(grade, np.searchsorted(points, score, side="right"), 4)))

        grid = np.arange(0.1, 2.6, 0.1)
        best = max(kappa(points) for points in itertools.combinations(grid, 3))
        assert kappa(found.points) > best - 0.015
        assert kappa(found.points) > kappa(GradeCuts.nearest(SCALE).points)
        assert found.facts["pairs"] == 1200
        assert found.facts["queries"] == 60

    def test_a_stated_cost_moves_them(self) -> None:
        score, grade, queries = traffic(40)
        levels = np.arange(4)
        over = np.where(levels[None, :] > levels[:, None], 10.0, 1.0) * np.abs(levels[:, None] - levels)
        careful, bold = (fit_grade_cuts(score, grade, queries, cost=cost) for cost in (over, over.T))
        assert all(a > b for a, b in zip(careful.points, bold.points, strict=True))
        assert careful.facts["objective"] == "expected cost"

    def test_a_label_may_leave_open_which_of_two_grades_is_right(self) -> None:
        score, grade, queries = traffic(40)
        allowed = np.stack([grade < 2, grade < 2, grade > 1, grade > 1], axis=1)
        points = fit_grade_cuts(score, allowed, queries).points
        told = np.searchsorted(points, score, side="right")
        assert ((told > 1) == (grade > 1)).mean() > 0.85

    @pytest.mark.parametrize(
        ("score", "grade", "queries", "cost"),
        [
            ([], [], [], None),
            ([0.1, 0.2], [1], [0], None),
            ([0.1, 0.2], [1, 1], [0, 1], None),
            ([0.1, 0.2], [0, 1], [0, 1], [[0, -1], [1, 0]]),
            ([0.1, 0.2], [0, 1], [0, 1], [[0, 1, 2]]),
        ],
    )
    def test_what_says_nothing_of_grades_is_refused(self, score: Any, grade: Any, queries: Any, cost: Any) -> None:
        cost = None if cost is None else np.array(cost, dtype=float)
        with pytest.raises(InputError, match=r"labels|same grade|costs must be"):
            fit_grade_cuts(np.array(score), np.array(grade, dtype=int), np.array(queries), cost=cost)


class TestPrevalence:
    def test_a_shift_is_bayes_rule(self) -> None:
        calibration = Calibration(1.7, bias=(0.0, -0.2, 0.1, 0.3), prevalence=(0.4, 0.3, 0.2, 0.1))
        logits = np.random.default_rng(0).normal(size=(50, 4))
        new = np.array([0.1, 0.2, 0.3, 0.4])
        expected = calibration.probabilities(logits) * new / calibration.prevalence
        shifted = calibration.for_prevalence(new.tolist())
        assert np.allclose(shifted.probabilities(logits), expected / expected.sum(axis=1, keepdims=True))
        assert np.allclose(
            shifted.for_prevalence(calibration.prevalence).probabilities(logits), calibration.probabilities(logits)
        )
        assert Calibration.from_dict(shifted.to_dict()) == shifted

    def test_estimated_shares_are_those_of_the_traffic(self) -> None:
        rng = np.random.default_rng(0)
        known, new = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
        grade = rng.choice(4, size=4000, p=new)
        seen = rng.normal(grade, 0.7)
        likelihood = np.exp(-0.5 * np.square((seen[:, None] - np.arange(4)) / 0.7))
        probabilities = likelihood * known / (likelihood * known).sum(axis=1, keepdims=True)
        assert np.allclose(estimate_prevalence(probabilities, known.tolist(), held=0.0), new, atol=0.03)
        half = np.array(estimate_prevalence(probabilities, known.tolist()))
        assert ((half - known) * (new - known) > 0).all()

    def test_shares_that_are_none_are_refused(self) -> None:
        calibration = Calibration(1.0, prevalence=(0.5, 0.5))
        for wrong in ([0.5, 0.6], [1.0, 0.0], [1.0], [float("nan"), 1.0]):
            with pytest.raises(InputError, match="share of each of the 2 grades"):
                calibration.for_prevalence(wrong)
        with pytest.raises(InputError, match="does not say which shares"):
            Calibration().for_prevalence([0.5, 0.5])


class TestPromises:
    def test_text_and_back(self) -> None:
        promise = Promise.parse("recall 0.9 of relevant", SCALE)
        assert promise == Promise("recall", 0.9, 2)
        assert Promise.parse(promise.text(SCALE), SCALE) == promise
        assert Promise.parse(" Precision .8 of 3 ", SCALE) == Promise("precision", 0.8, 3)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("recall 1 of relevant", "above 0 and below 1"),
            ("recall 0 of relevant", "above 0 and below 1"),
            ("recall 0.9 of excellent", "no grade 'excellent'; it has: irrelevant, related, relevant, perfect"),
            ("recall 0.9 of irrelevant", "every document is"),
            ("0.9 of relevant", "expected a cut like"),
            ("recall 1.2.3 of relevant", "expected a number"),
        ],
    )
    def test_what_is_none_says_why(self, text: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            Promise.parse(text, SCALE)

    def test_a_grade_by_name_or_number(self) -> None:
        assert grade_above_lowest("related", SCALE) == grade_above_lowest(1, SCALE) == 1
        with pytest.raises(InputError, match="no grade 4"):
            grade_above_lowest(4, SCALE)


def risk(cut: Cut, probabilities: NDArray[np.float64], grade: NDArray[np.intp], queries: NDArray[np.intp]) -> float:
    kept, relevant = cut.keeps(probabilities), grade >= cut.promise.grade
    losses = []
    for query in np.unique(queries):
        own = queries == query
        if cut.promise.kind == "recall":
            if relevant[own].any():
                losses.append(float(1 - kept[own & relevant].mean()))
        else:
            losses.append(float((~relevant[own & kept]).mean()) if kept[own].any() else 0.0)
    return float(np.mean(losses))


class TestCuts:
    @pytest.mark.parametrize("promise", [Promise("recall", 0.9, 2), Promise("precision", 0.6, 2)])
    def test_promises_are_held_on_new_queries(self, promise: Promise) -> None:
        risks, shares = [], []
        for seed in range(40):
            score, grade, queries = traffic(60, seed=seed)
            probabilities, fitted = distributions(score), queries < 30
            cut = fit_cut(promise, probabilities[fitted], grade[fitted], queries[fitted])
            risks.append(risk(cut, probabilities[~fitted], grade[~fitted], queries[~fitted]))
            shares.append(cut.keeps(probabilities[~fitted]).mean())
        alpha = 1 - promise.level
        if promise.kind == "recall":
            # What is promised is the mean over calibration sets; and the promise isn't held by keeping everything.
            assert alpha / 3 < np.mean(risks) <= alpha
            assert np.mean(shares) < 0.9
        else:
            assert np.mean(np.array(risks) > alpha) <= 0.1
            assert np.mean(shares) > 0.03

    def test_the_recall_threshold_is_the_highest_that_the_formula_allows(self) -> None:
        score, grade, queries = traffic(25)
        probabilities = distributions(score)
        cut = fit_cut(Promise("recall", 0.8, 2), probabilities, grade, queries)
        n = len(np.unique(queries[grade >= 2]))

        def bound(threshold: float) -> float:
            other = Cut(cut.promise, threshold)
            return n / (n + 1) * risk(other, probabilities, grade, queries) + 1 / (n + 1)

        assert bound(cut.threshold) <= 0.2 < bound(np.nextafter(cut.threshold, 2))

    def test_too_few_queries_say_how_many_it_takes(self) -> None:
        score, grade, queries = traffic(8)
        probabilities = distributions(score)
        with pytest.raises(InputError, match=r"8 queries .* recall of 0.9: it takes 9"):
            fit_cut(Promise("recall", 0.9, 1), probabilities, grade, queries)
        with pytest.raises(InputError, match=r"8 queries .* precision of 0.9 with confidence 0.9: it takes 22"):
            fit_cut(Promise("precision", 0.9, 1), probabilities, grade, queries)
        assert hoeffding_bentkus(0.0, 22, 0.1) <= 0.1 < hoeffding_bentkus(0.0, 21, 0.1)
        assert queries_needed(Promise("recall", 0.95, 1)) == 19

    def test_a_precision_that_no_threshold_has_is_refused(self) -> None:
        rng = np.random.default_rng(0)
        queries = np.repeat(np.arange(30), 10)
        grade = np.zeros(300, dtype=np.intp)
        grade[::10] = 2
        probabilities = np.full((300, 4), 0.25) + rng.normal(0, 1e-9, (300, 1))
        with pytest.raises(InputError, match=r"no threshold|promise less"):
            fit_cut(Promise("precision", 0.99, 2), probabilities, grade, queries, confidence=0.2)
        with pytest.raises(InputError, match="some that are relevant"):
            fit_cut(Promise("recall", 0.9, 3), probabilities, grade, queries)

    def test_novelty_of_familiar_queries_is_kept(self) -> None:
        score, grade, queries = traffic(40)
        novelty = queries * 2.0
        cut = fit_cut(Promise("recall", 0.8, 2), distributions(score), grade, queries, novelty=novelty)
        assert cut.novelty == pytest.approx(74.1)


class TestFusion:
    def test_scores_are_standardised_within_the_query(self) -> None:
        first, second = np.array([30.0, 20.0, 10.0]), np.array([0.1, 0.2, 0.6])
        fused = fuse_scores(first, second, 0.6)
        assert np.allclose(fused, fuse_scores(first * 7 - 3, second * 0.01, 0.6))
        assert np.argsort(-fuse_scores(first, second, 0.0)).tolist() == [0, 1, 2]
        assert np.argsort(-fuse_scores(first, second, 1.0)).tolist() == [2, 1, 0]

    def test_places_stand_in_for_scores(self) -> None:
        assert np.argsort(-fuse_scores(None, np.zeros(4), 0.9)).tolist() == [0, 1, 2, 3]
        assert fuse_scores(None, np.array([0.5]), 0.7).tolist() == [0.0]
        assert len(fuse_scores(None, np.zeros(0), 0.7)) == 0
        with pytest.raises(InputError, match="finite score"):
            fuse_scores([1.0, float("nan")], np.zeros(2), 0.5)

    def test_the_weight_falls_with_novelty(self) -> None:
        weight = FusionWeight(0.8, 0.2)
        assert [weight.at(value) for value in (None, 10, 50, 75, 100)] == pytest.approx([0.8, 0.8, 0.8, 0.7, 0.6])
        with pytest.raises(InputError, match=r"within 0..1"):
            FusionWeight(1.2)

    @pytest.mark.parametrize(("good", "low", "high"), [("model", 0.6, 1.0), ("first", 0.0, 0.4)])
    def test_the_fit_listens_to_what_is_right(self, good: str, low: float, high: float) -> None:
        rng = np.random.default_rng(0)
        lists = []
        for _ in range(40):
            truth = rng.normal(size=30)
            clear, noisy = truth + rng.normal(0, 0.1, 30), truth + rng.normal(0, 3, 30)
            first, score = (noisy, clear) if good == "model" else (clear, noisy)
            lists.append(FusionList(first, score, 20.0, lambda order, truth=truth: float(truth[order[:5]].mean())))  # type: ignore[misc]
        assert low <= fit_fusion({"made up": lists}).at(20.0) <= high


class TestTheManifest:
    def test_what_is_written_is_read(self) -> None:
        decisions = Decisions(
            GradeCuts((0.5, 1.0, 2.0), {"pairs": 10}),
            (Cut(Promise("recall", 0.9, 2), 0.25, 84.0, {"queries": 53}),),
            FusionWeight(0.8, 0.2, {"sets": {}}),
        )
        assert Decisions.from_dict(decisions.to_dict(SCALE), SCALE) == decisions
        assert Decisions.from_dict({}, SCALE) == Decisions()
        assert decisions.cut("recall 0.90 of relevant", SCALE).threshold == 0.25

    def test_decisions_of_another_scale_are_refused(self) -> None:
        binary = RelevanceScale.named("binary")
        with pytest.raises(InputError, match="3 cut points for 2 grades"):
            Decisions.from_dict({"grades": {"points": [0.5, 1, 2], "facts": {}}}, binary)
        cut = {"promise": "recall 0.9 of perfect", "threshold": 0.2, "novelty": None, "facts": {}}
        with pytest.raises(InputError, match="no grade 'perfect'"):
            Decisions.from_dict({"cuts": [cut]}, binary)
        with pytest.raises(InputError, match="expected grades, cuts and fusion"):
            Decisions.from_dict({"grades": {"points": [0.5, 1, 2]}}, SCALE)

    def test_a_cut_that_is_not_there_says_which_are(self) -> None:
        with pytest.raises(InputError, match=r"no cut 'recall 0.9 of relevant' \(it has: none\)"):
            Decisions().cut("recall 0.9 of relevant", SCALE)
