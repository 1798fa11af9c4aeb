"""All measures of graded pairs by group, their intervals and gaps, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.evaluation.bootstrap import bootstrap, paired_difference
from darl_rerank.evaluation.grading import weighted_mean
from darl_rerank.evaluation.pairs import evaluate_pairs
from darl_rerank.evaluation.report import write_report

NAMES = ("low", "mid", "high")


def example() -> dict[str, Any]:
    """A good model on group ID, a worse one on group OOD; novelty tells them apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    noise = np.repeat([0.3, 2.0], 300)
    logits = -3 * np.abs(np.arange(3) - (labels + noise * rng.normal(size=600))[:, None])
    probabilities = np.exp(logits)
    return {
        "labels": labels,
        "probabilities": probabilities / probabilities.sum(1, keepdims=True),
        "gains": np.arange(3),
        "query_ids": np.arange(600) // 6,
        "groups": np.repeat(["ID", "OOD"], 300),
        "novelty_scores": np.r_[rng.uniform(0, 100, 300), rng.uniform(90, 100, 300)],
        "names": NAMES,
        "resamples": 200,
    }


def test_gaps_and_intervals() -> None:
    result = evaluate_pairs(**example())
    json.dumps(result, allow_nan=False)
    home, away = result["groups"]["ID"]["measures"], result["groups"]["OOD"]["measures"]
    for name, worse in (("qwk", -1), ("ndcg@10", -1), ("nll", 1), ("mass_above", 1), ("auc:mid", -1)):
        gap = result["gaps"]["OOD"][name]
        assert gap["value"] == pytest.approx(away[name]["value"] - home[name]["value"])
        assert gap["low"] <= gap["value"] <= gap["high"]
        assert gap["low"] * worse > 0, name
        assert gap["high"] * worse > 0, name
    assert result["novelty"]["OOD"]["auroc"]["value"] > 0.9
    assert np.sum(result["groups"]["ID"]["confusion"]) == 300
    assert evaluate_pairs(**example()) == result


def test_undefined_measures_are_null() -> None:
    result = evaluate_pairs(np.zeros(4, int), np.tile([0.6, 0.4], (4, 1)), np.array([0, 1]), np.arange(4), resamples=20)
    measures = result["groups"]["all"]["measures"]
    assert measures["ndcg@10"]["value"] is None
    assert measures["spearman"]["value"] is None
    assert measures["accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(600, 3)}, r"labels must be grades 0\.\.2, got 3\.\.3"),
        ({"probabilities": np.ones((600, 3))}, "must sum to 1"),
        ({"query_ids": np.zeros(5)}, r"query_ids must have shape \(600,\)"),
        ({"reference": "near"}, "there is no group 'near' to compare with; groups: ID, OOD"),
    ],
)
def test_faults_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_pairs(**{**example(), **changes})


def test_the_bootstrap_draws_queries_not_pairs() -> None:
    """Copies of a pair within its query must not make the interval narrower."""
    values = np.random.default_rng(0).normal(size=50)
    queries = np.arange(50)
    one = bootstrap({"m": lambda w: weighted_mean(values, w)}, queries)["m"]
    copied = np.repeat(values, 20)
    many = bootstrap({"m": lambda w: weighted_mean(copied, w)}, np.repeat(queries, 20))["m"]
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    expected = 1.96 * values.std() / np.sqrt(50)
    assert (one.high - one.low) / 2 == pytest.approx(expected, rel=0.15)


def test_a_paired_difference_cancels_what_queries_share() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(size=80)
    better = hard + 0.1 + 0.01 * rng.normal(size=80)
    found = paired_difference(
        lambda w: weighted_mean(hard, w), lambda w: weighted_mean(better, w), np.arange(80), resamples=500
    )
    assert found.interval.value == pytest.approx(0.1, abs=0.01)
    assert found.interval.high - found.interval.low < 0.01
    assert found.p_value < 0.01


def test_the_report_holds_every_part(tmp_path: Path) -> None:
    values = example()
    result = evaluate_pairs(**values)
    path = tmp_path / "report.html"
    curve = [{"alpha": a / 10, "ID nDCG@10": 0.5 + a / 100} for a in range(11)]
    write_report(
        path, result, NAMES, title="A <model>", novelty=values["novelty_scores"], groups=values["groups"], alpha=curve
    )
    text = path.read_text("utf-8")
    # nDCG, a row of reliability diagrams a group, confusion, novelty, interpolation.
    assert text.count("<svg") == 6
    for part in ("A &lt;model&gt;", "quadratic weighted kappa", "Gaps: each group less ID", "FPR95", "Interpolation"):
        assert part in text
    first = path.read_bytes()
    write_report(
        path, result, NAMES, title="A <model>", novelty=values["novelty_scores"], groups=values["groups"], alpha=curve
    )
    assert path.read_bytes() == first, "the same data give the same page"
