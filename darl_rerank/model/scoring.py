"""From grade logits to probabilities and the score: by the checkpoint's calibration, or by that of the exit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .exits import lowered


def scored(
    checkpoint: Checkpoint,
    logits: NDArray[np.floating[Any]],
    novelty: NDArray[np.floating[Any]] | None = None,
    exit_layers: NDArray[np.intp] | None = None,
    *,
    prevalence: Sequence[float] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Calibrated probabilities, shape (n, K), and scores, shape (n,).

    Args:
        checkpoint: whose calibrations.
        logits: of n pairs, shape (n, K).
        novelty: shape (n,), percentiles 0..100; None where the checkpoint has none.
        exit_layers: behind which layer a pair left early, 0 if it did not, shape (n,); None where nothing can leave.
        prevalence: shares of the grades in the traffic; those that the calibration belongs to if None.

    Raises:
        InputError: as `Calibration.probabilities` and `Calibration.for_prevalence`.
    """
    calibration, gains = checkpoint.calibration, checkpoint.scale.gains
    main = calibration if prevalence is None else calibration.for_prevalence(prevalence)
    if exit_layers is None or not exit_layers.any():
        probabilities = main.probabilities(logits, novelty)
        return probabilities, checkpoint.scale.expected_gain(probabilities)
    assert checkpoint.exits is not None
    probabilities = np.zeros(np.shape(logits))
    whole = exit_layers == 0
    probabilities[whole] = main.probabilities(logits[whole], None if novelty is None else novelty[whole])
    for layer in np.unique(exit_layers[~whole]):
        own, rows = checkpoint.exits.at(int(layer)).calibration, exit_layers == layer
        if prevalence is not None:
            own = replace(own, prevalence=own.prevalence or calibration.prevalence).for_prevalence(prevalence)
        probabilities[rows] = own.probabilities(logits[rows])
    score = checkpoint.scale.expected_gain(probabilities)
    return probabilities, np.where(whole, score, lowered(score, float(gains[0])))
