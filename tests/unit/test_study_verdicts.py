"""Verdicts of the study: intervals over seeds, claims, and budgets of which an earlier result has more seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank.evaluation.bootstrap import Interval

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from study.claims import HOLDS, REFUTED, Part, overall, verdict
from study.earlier import with_earlier
from study.measured import Run, difference, mean_over_seeds


def test_seeds_are_drawn_too() -> None:
    """With two seeds an interval is as wide as their difference asks for; both arms see the same seeds drawn."""
    runs = [Run({"values": {"ID/qwk": v}}, {"ID/qwk": np.full(200, v, np.float32)}) for v in (0.25, 0.75)]
    value, draws = mean_over_seeds(runs, "ID/qwk")
    assert value == 0.5
    assert set(draws.tolist()) == {0.25, 0.5, 0.75}
    found, p_value, each = difference(runs, runs, "ID/qwk")
    assert (found.low, found.high, p_value, each) == (0.0, 0.0, 1.0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("kind", "measure", "low", "high", "word"),
    [
        ("better", "qwk", 0.01, 0.05, HOLDS),
        ("better", "qwk", -0.05, -0.01, REFUTED),
        ("better", "qwk", -0.01, 0.05, "not shown: interval covers zero"),
        ("better", "mass_above", -0.05, -0.01, HOLDS),
        ("better", "mass_above", 0.01, 0.05, REFUTED),
        ("no worse", "ndcg@10", -0.019, 0.05, HOLDS),
        ("no worse", "ndcg@10", -0.03, 0.05, "not shown: interval reaches beyond −0.02"),
        ("no worse", "ndcg@10", -0.05, -0.03, REFUTED),
        ("no worse", "nll", -0.5, 0.019, HOLDS),
        ("better", "qwk", float("nan"), float("nan"), "not measured"),
    ],
)
def test_verdicts(kind: str, measure: str, low: float, high: float, word: str) -> None:
    assert verdict(Part("OOD", measure, kind), Interval((low + high) / 2, low, high, 100)) == word


def test_a_claim_holds_only_as_a_whole() -> None:
    assert overall([HOLDS, HOLDS]) == HOLDS
    assert overall([HOLDS, REFUTED]) == "refuted (1 of 2 parts; 1 hold)"
    assert overall([HOLDS, "not shown: interval covers zero"]) == "not shown (1 of 2 parts hold)"
    assert overall([]) == "not measured"


def result_with(budgets: dict[int, int], command: str, **other: Any) -> dict[str, Any]:
    """A result of one arm with so many seeds, by budget."""
    return {
        "level": "LoRA", "settings": {"budgets": [12, 24]}, "data": {"digest": "a"},
        "arms": [{"arm": command, "budget": b, "seeds": list(range(n))} for b, n in budgets.items() if n],
        "claims": {str(b): {"a": command} for b in budgets},
        "against_plain": {str(b): {"OCC": command} for b in budgets},
        "missing": [{"arm": command, "budget": b, "seed": n} for b, n in budgets.items()],
        "provenance": {"command": command}, **other,
    }  # fmt: skip


def test_a_budget_of_which_the_work_folder_has_less_stays() -> None:
    here, there = result_with({12: 1, 24: 3}, "here"), result_with({12: 3, 24: 2}, "there")
    found = with_earlier(here, there)
    assert [(arm["arm"], arm["budget"]) for arm in found["arms"]] == [("there", 12), ("here", 24)]
    assert {(item["arm"], item["budget"]) for item in found["missing"]} == {("there", 12), ("here", 24)}
    assert found["claims"] == {"12": {"a": "there"}, "24": {"a": "here"}}
    assert found["against_plain"] == {"12": {"OCC": "there"}, "24": {"OCC": "here"}}
    assert found["earlier"] == {"12": {"command": "there"}}
    # Once more: it still says who wrote the budget, not who kept it.
    again = with_earlier(here, {**found, "provenance": {"command": "here"}})
    assert again["earlier"] == {"12": {"command": "there"}}


@pytest.mark.parametrize("other", [{"data": {"digest": "b"}}, {"level": "of 9"}, {"settings": {"budgets": [12]}}])
def test_what_was_measured_on_other_terms_does_not_stay(other: dict[str, Any]) -> None:
    here = result_with({12: 0, 24: 1}, "here")
    assert with_earlier(here, result_with({12: 3, 24: 3}, "there", **other)) == {**here, "earlier": {}}
    assert with_earlier(here, None) == {**here, "earlier": {}}
