"""What an arm's logits are worth: temperature on the development pairs, measures on the tests, and all bootstrap draws.

Every arm of a study is measured on the same test pairs with the same draws of queries, and its draws are kept. So any
two arms can be compared, pair for pair, without their predictions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.evaluation.bootstrap import Interval, Measure, draw_values, interval
from darl_rerank.evaluation.detection import auroc, fpr_at_recall
from darl_rerank.evaluation.pairs import measures_of
from darl_rerank.evaluation.reliability import reliability_curve
from darl_rerank.files import atomic_write
from darl_rerank.model.calibration import Calibration
from darl_rerank.training.model.temperature import fit_calibration

from .collections_by_role import Collections, Rows
from .settings import Study

ID, OOD = "ID", "OOD"
# Measures of which less is better.
LESS = {"nll", "rps", "ece", "mass_above", "aurc", "fpr95"}


def better_sign(measure: str) -> int:
    return -1 if measure.partition(":")[0] in LESS else 1


@dataclass(frozen=True, slots=True)
class Tests:
    """The test pairs of a study.

    Attributes:
        rows: of the collections, shape (n,).
        groups: for each group of them a mask, shape (n,): ID, OOD, and parts of OOD.
        labels, queries: of the rows.
    """

    rows: Rows
    groups: dict[str, NDArray[np.bool_]]
    labels: NDArray[np.intp]
    queries: NDArray[np.int64]


def tests_of(data: Collections, study: Study) -> Tests:
    home, away = data.roles["home_test"], data.roles["away_test"]
    rows = np.concatenate([home, away])
    is_away = np.arange(len(rows)) >= len(home)
    groups = {ID: ~is_away, OOD: is_away}
    if study.away_groups:
        names = np.array([data.pairs[row].group or "" for row in rows])
        groups |= {f"{OOD}: {name}": is_away & (names == name) for name in dict.fromkeys(names[is_away].tolist())}
    return Tests(rows, groups, data.labels[rows], data.queries[rows])


def temperature(logits: Mapping[str, NDArray[np.floating[Any]]], data: Collections) -> Calibration:
    """One temperature on "home_dev" and "away_dev" together, each counting alike; `logits` are by role."""
    roles = ("home_dev", "away_dev")
    weights = np.concatenate([np.full(len(logits[role]), 1 / len(logits[role])) for role in roles])
    labels = np.concatenate([data.targets[data.roles[role]] for role in roles])
    return fit_calibration(np.concatenate([logits[role] for role in roles]), labels, weights=weights).calibration


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed.

    Attributes:
        facts: what it was and how it went, JSON types; "values" by "group/measure", "reliability".
        draws: the same measures in every draw of queries, shape (resamples,).
    """

    facts: dict[str, Any]
    draws: dict[str, NDArray[np.float32]]

    def value(self, key: str) -> float:
        return float(self.facts["values"][key])


def measure_run(
    folder: Path,
    logits: Mapping[str, NDArray[np.floating[Any]]],
    data: Collections,
    tests: Tests,
    gains: NDArray[np.float64],
    facts: Mapping[str, Any],
    resamples: int,
    names: Sequence[str] | None = None,
) -> Run:
    """Measure logits, by role (the two dev and the two test roles), and keep the result in `folder`.

    `names` are the measures wanted, all of `measures_of` but the calibration error of each grade if None;
    "ece_before" is the calibration error before temperature scaling.
    """
    calibration = temperature(logits, data)
    test_logits = np.concatenate([logits["home_test"], logits["away_test"]])
    plain, scaled = Calibration.identity().probabilities(test_logits), calibration.probabilities(test_logits)
    measures: dict[str, Measure] = {}
    reliability: dict[str, Any] = {}
    for group, mask in tests.groups.items():
        labels, queries = tests.labels[mask], tests.queries[mask]
        own = measures_of(labels, scaled[mask], gains, queries)
        own["ece_before"] = measures_of(labels, plain[mask], gains, queries)["ece"]
        wanted = [name for name in own if not name.startswith("ece:")] if names is None else names
        measures |= {f"{group}/{name}": _on(own[name], mask) for name in wanted}
        reliability[group] = {
            "before": reliability_curve(labels, plain[mask], bins=10),
            "after": reliability_curve(labels, scaled[mask], bins=10),
        }
    once = np.ones((1, len(tests.rows)))
    values = {key: float(measure(once)[0]) for key, measure in measures.items()}
    draws = draw_values(measures, tests.queries, resamples=resamples)
    run = Run(
        {**facts, "temperature": calibration.temperature, "values": values, "reliability": reliability},
        {key: found.astype(np.float32) for key, found in draws.items()},
    )
    _write(folder, run)
    return run


def _on(measure: Measure, mask: NDArray[np.bool_]) -> Measure:
    return lambda weights: measure(weights[..., mask])


def _write(folder: Path, run: Run) -> None:
    with atomic_write(folder / "draws.npz", "wb") as stream:
        np.savez(stream, **{key.replace("/", "|"): found for key, found in run.draws.items()})  # type: ignore[arg-type]
    # Written last: a folder that has it is whole.
    with atomic_write(folder / "run.json") as stream:
        json.dump(run.facts, stream)


def read_run(folder: Path) -> Run | None:
    """What `measure_run` kept in `folder`; None if it is not there."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    with np.load(folder / "draws.npz", allow_pickle=False) as kept:
        draws = {key.replace("|", "/"): kept[key] for key in kept.files}
    return Run(json.loads(path.read_text("utf-8")), draws)


def mean_over_seeds(runs: Sequence[Run], key: str) -> tuple[float, NDArray[np.float64]]:
    """A measure's mean over seeds, and its draws: of queries and, with several seeds, of seeds.

    In every draw as many seeds as there are are drawn with replacement, the same ones for every arm, so that the
    interval also tells how much hangs on the seed. Few seeds tell it poorly.
    """
    table = np.stack([run.draws[key] for run in runs]).astype(np.float64)
    count, resamples = table.shape
    drawn = np.random.default_rng(1).integers(count, size=(count, resamples))
    return float(np.mean([run.value(key) for run in runs])), np.take_along_axis(table, drawn, axis=0).mean(axis=0)


def described(runs: Sequence[Run]) -> dict[str, Any]:
    """An arm's measures by group, and for each group but ID the gap to ID, all with intervals; JSON types."""
    found: dict[str, Any] = {"groups": {}, "gaps": {}}
    for key in runs[0].draws:
        group, _, measure = key.partition("/")
        value, draws = mean_over_seeds(runs, key)
        found["groups"].setdefault(group, {})[measure] = {
            **interval(value, draws).to_dict(), "seeds": [_json_number(run.value(key)) for run in runs],
        }  # fmt: skip
        if group != ID:
            home, home_draws = mean_over_seeds(runs, f"{ID}/{measure}")
            gap = interval(value - home, draws - home_draws)
            found["gaps"].setdefault(group, {})[measure] = gap.to_dict()
    return found


def _json_number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def difference(second: Sequence[Run], first: Sequence[Run], key: str) -> tuple[Interval, float, list[float | None]]:
    """`second` less `first` with the same seeds in both: interval, two-sided p-value, and the difference of each seed.

    The p-value is that of `darl_rerank.evaluation.bootstrap.paired_difference`: twice the smaller part of the draws on
    either side of 0.
    """
    value, draws = mean_over_seeds(second, key)
    base, base_draws = mean_over_seeds(first, key)
    gaps = draws - base_draws
    defined = gaps[np.isfinite(gaps)]
    smaller = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p_value = min(1.0, 2 * (smaller + 1) / (len(defined) + 1))
    each = [_json_number(b.value(key) - a.value(key)) for a, b in zip(first, second, strict=True)]
    return interval(value - base, gaps), p_value, each


def novelty_of_groups(
    scores: NDArray[np.float64], data: Collections, tests: Tests, resamples: int
) -> dict[str, dict[str, Any]]:
    """AUROC and FPR95 of each group of OOD test pairs against the ID ones, with intervals, and histograms.

    Args:
        scores: novelty percentile of each test pair, shape (n,).
    """
    home = tests.groups[ID]
    names = np.array([data.pairs[row].group or "" for row in tests.rows])
    masks = {OOD: tests.groups[OOD]}
    masks |= {name: tests.groups[OOD] & (names == name) for name in dict.fromkeys(names[tests.groups[OOD]].tolist())}
    edges = np.linspace(0, 100, 11)
    found: dict[str, dict[str, Any]] = {ID: _histogram(scores[home], edges)}
    for name, mask in masks.items():
        both = home | mask
        pair: dict[str, Measure] = {
            "auroc": lambda w, o=mask[both], s=scores[both]: auroc(o, s, w),  # type: ignore[misc]
            "fpr95": lambda w, o=mask[both], s=scores[both]: fpr_at_recall(o, s, w),  # type: ignore[misc]
        }
        draws = draw_values(pair, tests.queries[both], resamples=resamples)
        once = np.ones((1, int(both.sum())))
        found[name] = {
            **{key: interval(float(measure(once)[0]), draws[key]).to_dict() for key, measure in pair.items()},
            "queries": len(np.unique(tests.queries[mask])),
            **_histogram(scores[mask], edges),
        }
    return found


def _histogram(scores: NDArray[np.float64], edges: NDArray[np.float64]) -> dict[str, Any]:
    counts, _ = np.histogram(scores, edges)
    return {"pairs": len(scores), "share_by_tenth": (counts / max(1, len(scores))).tolist()}
