"""How to calibrate: with a bias for each grade or not, how much on soft labels; five folds over what people graded.

    python benchmarks/bundled/calibrations.py RECIPE WORK

WORK is the folder of the training (rounds/fourth.work), whose calibrate stage left logits and features. Each
calibration is fitted as there, to what the recipe holds out with soft labels and to four folds of the queries that
people graded, and is measured on the fifth. On the soft labels it is measured too, in sample, as the mean over their
collections of the divergence KL(label ‖ prediction): what suits web passages may suit nothing else. Temperatures that
follow novelty are among them if the recipe's does. Writes results/bundled_calibrations.json.
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
from darl_rerank.errors import InputError
from darl_rerank.evaluation.reliability import (
    expected_calibration_error,
    negative_log_likelihood,
    ranked_probability_score,
)
from darl_rerank.training.data.features import open_features
from darl_rerank.training.data.labels import label_matrix, numbered
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.model.temperature import fit_calibration
from darl_rerank.training.recipe.read import read_recipe

FOLDS = 5
# Of the weight of all that a calibration is fitted to.
SOFT_SHARES = (0.5, 0.25, 0.12, 0.0)


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
def main(recipe: Path, work: Path, seed: int) -> None:
    asked = read_recipe(recipe)
    data = load_training_set(asked)
    assert asked.calibrate is not None
    sets = data.calibration_sets(novelty=asked.calibrate.novelty)
    try:
        seen = [open_features(work / "calibrate" / name.replace(" ", "-")) for name in sets]
    except InputError as error:
        raise click.UsageError(str(error)) from error
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
    collections = np.array([pair.group for pair in held_out if pair.probabilities is not None])
    soft = len(labels[0])
    of_novelty = (False, True) if asked.calibrate.novelty else (False,)
    for share, with_novelty, with_bias in product(SOFT_SHARES, of_novelty, (False, True)):
        told = np.zeros_like(labels[1])
        elsewhere = []
        for number in range(FOLDS):
            others = fold != number
            calibration = fit_calibration(
                np.concatenate([logits[0], logits[1][others]]),
                np.concatenate([labels[0], labels[1][others]]),
                novelty=np.concatenate([novelty[0], novelty[1][others]]),
                with_novelty=with_novelty,
                with_bias=with_bias,
                weights=np.r_[np.full(soft, share / soft), np.full(others.sum(), (1 - share) / others.sum())],
            ).calibration
            told[~others] = calibration.probabilities(logits[1][~others], novelty[1][~others])
            elsewhere.append(calibration.probabilities(logits[0], novelty[0]))
        name = " and ".join(("temperature", *["novelty"] * with_novelty, *["biases"] * with_bias))
        name += f", soft labels {share:.0%}"
        divergence = np.mean([
            relative_entropy(labels[0][collections == one], np.mean(elsewhere, axis=0)[collections == one])
            for one in np.unique(collections)
        ])  # fmt: skip
        found = {
            "nll": float(negative_log_likelihood(labels[1], told)),
            "rps": float(ranked_probability_score(grades, told)),
            "ece": float(expected_calibration_error(grades, told)),
            "confidence": float(told.max(axis=1).mean()), "accuracy": float((told.argmax(axis=1) == grades).mean()),
            "mean": told.mean(axis=0).tolist(), "divergence of soft labels": float(divergence),
        }  # fmt: skip
        values["calibrations"][name] = found
        measures = ", ".join(f"{m} {found[m]:.4f}" for m in ("nll", "rps", "ece", "divergence of soft labels"))
        click.echo(
            f"{name}: {measures}, confidence {found['confidence']:.3f}, accuracy {found['accuracy']:.3f}, "
            f"mean {np.round(found['mean'], 3)}"
        )
    click.echo(f"people's grades: {np.round(values['shares'], 3)}")
    click.echo(f"written: {write_result('bundled_calibrations', values)}", err=True)


def relative_entropy(labels: NDArray[np.float64], told: NDArray[np.float64]) -> float:
    """The mean of KL(label ‖ told), in nats."""
    return float(negative_log_likelihood(labels, told) - negative_log_likelihood(labels, labels))


if __name__ == "__main__":
    main()
