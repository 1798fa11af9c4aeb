"""How to calibrate: with a bias for each grade or not, on soft labels or not; five folds over what people graded.

    python benchmarks/bundled/calibrations.py RECIPE WORK

WORK is the folder of the training (rounds/fourth.work), whose calibrate stage left logits and features. Each
calibration is fitted as there: on what the recipe holds out with soft labels, and on four folds of the queries that
people graded; or on the latter alone. Measured is the fifth fold. Writes results/bundled_calibrations.json.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import write_result

from darl_rerank import Checkpoint
from darl_rerank.evaluation.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    ranked_probability_score,
)
from darl_rerank.training.calibrate import fit_calibration
from darl_rerank.training.features import open_features
from darl_rerank.training.labels import label_matrix, numbered
from darl_rerank.training.recipe import read_recipe
from darl_rerank.training.training_set import load_training_set

FOLDS = 5


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(recipe: Path, work: Path, seed: int) -> None:
    asked = read_recipe(recipe)
    data = load_training_set(asked)
    assert asked.calibrate is not None
    sets = data.calibration_sets(novelty=asked.calibrate.novelty)
    seen = [open_features(work / "calibrate" / name.replace(" ", "-")) for name in sets]
    if [len(pairs) for pairs in sets.values()] != [len(found) for found in seen]:
        raise click.UsageError(f"{work}: the stage looked at other pairs than the recipe's; train it with this recipe")
    checkpoint = Checkpoint.load(work / "calibrate" / "checkpoint")
    held_out = [pair for pairs in sets.values() for pair in pairs]
    hard = np.array([pair.probabilities is None for pair in held_out])

    def parted(values: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of soft labels and of people's grades."""
        return values[~hard].astype(np.float64), values[hard].astype(np.float64)

    novelty = parted(np.concatenate([checkpoint.novelty.score(found.features) for found in seen]))
    logits = parted(np.concatenate([found.logits for found in seen]))
    labels = parted(label_matrix(held_out, asked.grades))
    graded = [pair for pair in held_out if pair.probabilities is None]
    queries = numbered(pair.qid for pair in graded)
    fold = np.random.default_rng(seed).permutation(int(queries.max()) + 1)[queries] % FOLDS
    values: dict[str, Any] = {
        "recipe": recipe.name, "fingerprint": checkpoint.fingerprint, "pairs": len(graded), "folds": FOLDS,
        "seed": seed, "shares": labels[1].mean(axis=0).tolist(), "calibrations": {},
    }  # fmt: skip
    grades = labels[1].argmax(axis=1)
    for alone, with_novelty, with_bias in product((False, True), repeat=3):
        told = np.zeros_like(labels[1])
        for number in range(FOLDS):
            others = fold != number
            fitted = [(logits[1][others], labels[1][others], novelty[1][others])]
            if not alone:
                fitted.append((logits[0], labels[0], novelty[0]))
            fit = fit_calibration(
                np.concatenate([a for a, _, _ in fitted]),
                np.concatenate([b for _, b, _ in fitted]),
                novelty=np.concatenate([c for _, _, c in fitted]),
                with_novelty=with_novelty,
                with_bias=with_bias,
                weights=np.concatenate([np.full(len(a), 1 / len(a)) for a, _, _ in fitted]),
            )
            told[~others] = fit.calibration.probabilities(logits[1][~others], novelty[1][~others])
        name = " and ".join(("temperature", *["novelty"] * with_novelty, *["biases"] * with_bias))
        name += ", of people's grades alone" if alone else ", of all that is held out"
        found = {
            "nll": float(negative_log_likelihood(labels[1], told)),
            "rps": float(ranked_probability_score(grades, told)),
            "ece": float(expected_calibration_error(grades, told)),
            "confidence": float(told.max(axis=1).mean()), "accuracy": float((told.argmax(axis=1) == grades).mean()),
            "mean": told.mean(axis=0).tolist(),
        }  # fmt: skip
        values["calibrations"][name] = found
        measures = ", ".join(f"{measure} {found[measure]:.4f}" for measure in ("nll", "rps", "ece"))
        click.echo(
            f"{name}: {measures}, confidence {found['confidence']:.3f}, accuracy {found['accuracy']:.3f}, "
            f"mean {np.round(found['mean'], 3)}"
        )
    click.echo(f"people's grades: {np.round(values['shares'], 3)}")
    click.echo(f"written: {write_result('bundled_calibrations', values)}", err=True)


if __name__ == "__main__":
    main()
