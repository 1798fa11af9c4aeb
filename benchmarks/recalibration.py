"""Can another calibration bring the calibration error down? python benchmarks/recalibration.py --work FOLDER

FOLDER is that of benchmarks/scores.py. Development collections only:

- halves: calibrations fitted to half of trec-dl-2021's queries, the expected calibration error (ECE) on what BM25 found
  of the other half, twenty times. Temperature alone, with biases, with a slope in novelty, with both.
- kinds: how the logits of other collections would have to move, each by one temperature and one step a grade. People
  said "relevant" or not there, some in three steps; which of our four grades that is, nobody said. Fitted with the
  likelihood of sets of grades, once as if "relevant" were the two upper grades and once as if it were the three upper.

Writes results/recalibration.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scipy.optimize import minimize
from scores import Judged, read_scores

from darl_rerank import Checkpoint
from darl_rerank.evaluation.reliability import expected_calibration_error
from darl_rerank.model.calibration import softmax
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.model.temperature import fit_calibration

WEB = "trec-dl-2021"
SPLITS, SEED = 20, 0
# What each of a collection's grades may be among ours, lowest to highest, if its best one is our two or three upper.
Readings = Mapping[str, Sequence[tuple[int, ...]]]
TWO: Readings = {"two upper grades": ((0, 1), (2, 3)), "three upper grades": ((0,), (1, 2, 3))}
THREE: Readings = {"two upper grades": ((0,), (1,), (2, 3)), "three upper grades": ((0,), (1, 2), (1, 2, 3))}
COLLECTIONS: Mapping[str, Readings] = {
    "selqa": TWO, "msrd": TWO, "product-questions": THREE, "semeval-cqa-dev": THREE,
}  # fmt: skip


@click.command(help=__doc__)
@click.option("--work", type=click.Path(exists=True, path_type=Path), required=True)
def main(work: Path) -> None:
    result: dict[str, Any] = {"seed": SEED, "halves": halves(read_scores(work, WEB)), "kinds": {}}
    for name, found in result["halves"].items():
        click.echo(f"{name}: ECE {found['mean']:.3f}, standard deviation {found['deviation']:.3f}")
    for name, readings in COLLECTIONS.items():
        if (work / f"{name}.scores.jsonl").is_file():
            result["kinds"][name] = kind(read_scores(work, name), readings)
            click.echo(f"{name}: {result['kinds'][name]}")
    click.echo(write_result("recalibration", result))


def pairs(queries: Sequence[Judged], *, found: bool = False) -> tuple[NDArray[Any], ...]:
    """Grades, logits, novelty and query numbers of what people judged; with `found`, of what BM25 found of it."""
    parts = []
    for number, query in enumerate(queries):
        places = query.stages["bm25"][0] if found else np.arange(len(query.grades))
        places = places[query.grades[places] >= 0]
        logits = query.logits.reshape(len(query.grades), -1)[places]
        parts.append((query.grades[places], logits, query.novelty[places], np.full(len(places), number)))
    return tuple(np.concatenate([part[i] for part in parts if len(part[0])]) for i in range(4))


def halves(queries: Sequence[Judged]) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(SEED)
    errors: dict[str, list[float]] = {}
    for _ in range(SPLITS):
        order = rng.permutation(len(queries))
        fitted, measured = ([queries[i] for i in order[part::2]] for part in (0, 1))
        grades, logits, novelty, _ = pairs(fitted)
        # Of documents that left early novelty may be unknown.
        known = np.isfinite(novelty)
        for bias in (False, True):
            for slope in (False, True):
                calibration = fit_calibration(
                    logits[known], grades[known], novelty=novelty[known], with_novelty=slope, with_bias=bias
                ).calibration
                true, given, strange, _ = pairs(measured, found=True)
                kept = np.isfinite(strange)
                probabilities = calibration.probabilities(given[kept], strange[kept])
                name = "temperature" + ", biases" * bias + ", slope in novelty" * slope
                errors.setdefault(name, []).append(float(expected_calibration_error(true[kept], probabilities)))
    return {
        name: {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "splits": SPLITS}
        for name, values in errors.items()
    }


def kind(queries: Sequence[Judged], readings: Readings) -> dict[str, Any]:
    calibration = Checkpoint.load(DEFAULT).calibration
    grades, logits, _, _ = pairs(queries)
    steps = np.arange(logits.shape[1])
    bias = np.array(calibration.bias)
    result: dict[str, Any] = {"pairs": len(grades)}
    for name, sets in readings.items():
        allowed = np.array([[step in sets[grade] for step in steps] for grade in grades])

        def loss(x: NDArray[np.float64], allowed: NDArray[np.bool_] = allowed) -> float:
            probabilities = softmax(logits / np.exp(x[0]) + bias + x[1] * steps)
            return float(-np.log(np.maximum((probabilities * allowed).sum(axis=1), 1e-12)).mean())

        start = np.array([np.log(calibration.temperature), 0.0])
        best = minimize(loss, start, method="L-BFGS-B", bounds=[(-3, 3), (-3, 3)])
        result[name] = {
            "temperature": float(np.exp(best.x[0])), "step a grade": float(best.x[1]), "nll before": loss(start),
            "nll after": float(best.fun),
        }  # fmt: skip
    return result


if __name__ == "__main__":
    main()
