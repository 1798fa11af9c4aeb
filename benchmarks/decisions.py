"""Grades: the most probable one against cut points on the score, fitted on development collections.

    python benchmarks/decisions.py --work FOLDER [--write CHECKPOINT]

FOLDER is scores.py's. The cut points are fitted on the two development collections at home whose pairs people judged
both ways: trec-dl-2021 (grades 0 to 3, the pairs that BM25 found) and selqa (sentences that answer and sentences that
don't: two grades each). For comparison on trec-dl-2021 alone, as many passages there are about the query without
answering it. Measured on the pairs that BM25 found; --write puts cut points and prevalence into a manifest, without it
those that the checkpoint has are measured. Writes results/decisions.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scores import read_scores

from darl_rerank import Checkpoint
from darl_rerank.evaluation.bootstrap import bootstrap, paired_difference
from darl_rerank.evaluation.grading import confusion, macro_f1, quadratic_weighted_kappa
from darl_rerank.files import atomic_write
from darl_rerank.model.calibration import estimate_prevalence
from darl_rerank.model.decisions import GradeCuts
from darl_rerank.model.manifest import MANIFEST
from darl_rerank.model.shipped import DEFAULT, checkpoint_folder
from darl_rerank.training.decisions.grades import fit_grade_cuts

GRADES = 4
MEASURED = {"trec-dl-2021": "dev", "trec-dl-2019": "test", "icecat": "test"}
SEED = 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """n judged pairs of a collection that BM25 found.

    Attributes:
        grades: people's, shape (n,).
        probabilities: shape (n, K).
        queries: shape (n,).
    """

    grades: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    queries: NDArray[np.str_]

    def score(self, gains: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.probabilities @ gains)


def judged_pairs(work: Path, name: str) -> Pairs:
    grades, probabilities, queries = [], [], []
    for query in read_scores(work, name):
        found = query.stages["bm25"][0]
        found = found[query.grades[found] >= 0]
        if not len(found):  # BM25 found nothing that people judged
            continue
        grades.append(query.grades[found])
        probabilities.append(query.probabilities.reshape(-1, GRADES)[found])
        queries += [f"{name}/{query.qid}"] * len(found)
    return Pairs(np.concatenate(grades), np.concatenate(probabilities), np.array(queries))


def fitted(web: Pairs, sentences: Pairs | None, gains: NDArray[np.float64]) -> GradeCuts:
    score, queries = web.score(gains), web.queries
    allowed = web.grades[:, None] == np.arange(GRADES)
    group = np.zeros(len(score))
    if sentences is not None:
        answers = sentences.grades > 0
        score = np.concatenate([score, sentences.score(gains)])
        queries = np.concatenate([queries, sentences.queries])
        allowed = np.concatenate([allowed, np.where(answers[:, None], np.arange(GRADES) > 1, np.arange(GRADES) < 2)])
        group = np.concatenate([group, np.ones(len(answers))])
    return fit_grade_cuts(score, allowed, queries, groups=group, seed=SEED)


def shifted(pairs: Pairs, known: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    changed = pairs.probabilities * (shares / known)
    return np.asarray(changed / changed.sum(axis=1, keepdims=True))


def measured(pairs: Pairs, given: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Kappa and macro-F1 of each way to give grades, with intervals, and kappa's difference from the first way's."""

    def measure(which: NDArray[Any], function: Any) -> Any:
        return lambda weights: function(confusion(pairs.grades, which, GRADES, weights))

    result: dict[str, Any] = {}
    first = next(iter(given.values()))
    for name, which in given.items():
        intervals = bootstrap(
            {"kappa": measure(which, quadratic_weighted_kappa), "macro_f1": measure(which, macro_f1)},
            pairs.queries,
            seed=SEED,
        )
        result[name] = {
            **{measure_name: interval.to_dict() for measure_name, interval in intervals.items()},
            "shares": np.bincount(which, minlength=GRADES).astype(int).tolist(),
            "confusion": confusion(pairs.grades, which, GRADES).astype(int).tolist(),
        }
        if which is not first:
            difference = paired_difference(
                measure(first, quadratic_weighted_kappa), measure(which, quadratic_weighted_kappa), pairs.queries,
                seed=SEED,
            )  # fmt: skip
            result[name]["kappa from the first"] = difference.interval.to_dict()
    return result


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--write", "target", help="The checkpoint whose manifest gets cut points and prevalence.")
@click.option("--name", default="decisions", show_default=True)
def main(work: Path, target: str | None, name: str) -> None:
    checkpoint = Checkpoint.load(target or DEFAULT)
    gains = checkpoint.scale.gains
    web, sentences = judged_pairs(work, "trec-dl-2021"), judged_pairs(work, "selqa")
    alone, ships = fitted(web, None, gains), checkpoint.decisions.grades
    if target is not None or ships is None:
        ships = fitted(web, sentences, gains)
    known = web.probabilities.mean(axis=0)
    values: dict[str, Any] = {
        "scores": json.loads((work / "scores.json").read_text("utf-8")), "seed": SEED,
        "cut points": {"ships": list(ships.points), "trec-dl-2021 alone": list(alone.points), "facts": ships.facts},
        "prevalence": known.tolist(), "collections": {},
    }  # fmt: skip
    for collection, role in MEASURED.items():
        pairs = judged_pairs(work, collection)
        score = pairs.score(gains)
        true = np.maximum(np.bincount(pairs.grades, minlength=GRADES) / len(pairs.grades), 1e-3)
        guessed = np.array(estimate_prevalence(pairs.probabilities, known.tolist()))
        given = {
            "most probable grade": pairs.probabilities.argmax(axis=1),
            "nearest gain": GradeCuts.nearest(checkpoint.scale).grades(score),
            "cut points, trec-dl-2021 alone": alone.grades(score),
            "cut points (ships)": ships.grades(score),
            "cut points, prevalence given": ships.grades(shifted(pairs, known, true / true.sum()) @ gains),
            "cut points, prevalence estimated": ships.grades(shifted(pairs, known, guessed) @ gains),
        }
        values["collections"][collection] = {
            "role": role, "pairs": len(score), "queries": len(np.unique(pairs.queries)),
            "true shares": true.tolist(), "estimated shares": guessed.tolist(), "grades": measured(pairs, given),
        }  # fmt: skip
        for way, found in values["collections"][collection]["grades"].items():
            kappa, f1 = found["kappa"], found["macro_f1"]
            click.echo(
                f"{collection:14s} {way:34s} kappa {kappa['value']:.3f} [{kappa['low']:.3f}, {kappa['high']:.3f}]  "
                f"macro-F1 {f1['value']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}]  given {found['shares']}"
            )
    click.echo(f"cut points {np.round(ships.points, 3)}, on trec-dl-2021 alone {np.round(alone.points, 3)}")
    if target is not None:
        write_manifest(target, ships, known)
    click.echo(f"written: {write_result(name, values)}", err=True)


def write_manifest(target: str, cuts: GradeCuts, known: NDArray[np.float64]) -> None:
    """Cut points and prevalence into the manifest; nothing else of the checkpoint changes."""
    path = checkpoint_folder(target) / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    facts = {**cuts.facts, "fitted on": ["trec-dl-2021", "selqa"]}
    manifest.setdefault("decisions", {})["grades"] = {
        "points": [round(point, 4) for point in cuts.points],
        "facts": facts,
    }
    shares = np.round(known / known.sum(), 4)
    manifest["calibration"]["prevalence"] = shares.tolist()
    with atomic_write(path) as stream:
        stream.write(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    Checkpoint.load(target)


if __name__ == "__main__":
    main()
