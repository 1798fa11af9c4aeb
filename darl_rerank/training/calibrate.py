"""Fits a `Calibration` to graded pairs by minimising the negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.calibration import Calibration
from darl_rerank.errors import InputError, MissingDependencyError
from darl_rerank.evaluation.calibration import expected_calibration_error, negative_log_likelihood

# Outside of these a temperature says that the data can't tell (all predictions right, or none), not how sure to be.
TEMPERATURE_BOUNDS = (0.05, 20.0)
SLOPE_BOUNDS = (-3.0, 3.0)


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """A fitted calibration with what it changed on the pairs it was fitted to.

    Attributes:
        calibration: what to store in the checkpoint.
        pairs: number of graded pairs.
        nll_before, nll_after: mean negative log-likelihood in nats, at temperature 1 and as fitted.
        ece_before, ece_after: expected calibration error of the most probable grade, 0..1.
        at_bound: the temperature or the slope ended at its bound: the pairs don't determine it.
    """

    calibration: Calibration
    pairs: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    at_bound: bool


def fit_calibration(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    *,
    novelty: NDArray[np.floating[Any]] | None = None,
    with_novelty: bool = False,
    weights: NDArray[np.floating[Any]] | None = None,
) -> CalibrationFit:
    """The temperature (and with `with_novelty` its slope in novelty) under which the labels are likeliest.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). The likelihood has one optimum in
    1 / T; with a slope the search starts from the best temperature without one, so it never ends worse.

    Args:
        logits: shape (n, K).
        labels: grades, shape (n,), or probabilities, shape (n, K).
        novelty: shape (n,), percentiles 0..100; needed with `with_novelty`.
        with_novelty: also fit `novelty_slope`.
        weights: shape (n,), >= 0; all 1 if None.

    Raises:
        InputError: shapes don't fit, there are no pairs, or novelty is missing.
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.optimize import minimize, minimize_scalar
    except ImportError as error:
        raise MissingDependencyError("scipy", "train", "to fit a calibration") from error
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    if logits.ndim != 2 or not len(logits) or labels.shape not in (logits.shape[:1], logits.shape):
        raise InputError(
            f"calibration needs logits (n, K), n > 0, and labels (n,) or (n, K); got {logits.shape} and {labels.shape}"
        )
    if with_novelty and novelty is None:
        raise InputError("a temperature that follows novelty can't be fitted without novelty")

    def loss(log_temperature: float, slope: float = 0.0) -> float:
        calibration = Calibration(float(np.exp(log_temperature)), slope)
        return float(negative_log_likelihood(labels, calibration.probabilities(logits, novelty), weights))

    low, high = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    log_temperature, slope = float(found.x), 0.0
    if with_novelty:
        both = minimize(
            lambda x: loss(x[0], float(x[1])),
            x0=np.array([log_temperature, 0.0]),
            method="L-BFGS-B",
            bounds=[(low, high), SLOPE_BOUNDS],
        )
        if both.fun < found.fun:
            log_temperature, slope = float(both.x[0]), float(both.x[1])
    calibration = Calibration(float(np.exp(log_temperature)), slope)
    before = Calibration.identity().probabilities(logits)
    after = calibration.probabilities(logits, novelty)
    grades = labels if labels.ndim == 1 else labels.argmax(axis=1)
    edge = 1e-3
    return CalibrationFit(
        calibration=calibration,
        pairs=len(logits),
        nll_before=float(negative_log_likelihood(labels, before, weights)),
        nll_after=float(negative_log_likelihood(labels, after, weights)),
        ece_before=float(expected_calibration_error(grades, before, weights=weights)),
        ece_after=float(expected_calibration_error(grades, after, weights=weights)),
        at_bound=not (low + edge < log_temperature < high - edge and abs(slope) < SLOPE_BOUNDS[1] - edge),
    )
