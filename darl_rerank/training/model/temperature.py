"""Fits a `Calibration` to graded pairs by minimising the negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import CheckFailedError, InputError, MissingDependencyError
from darl_rerank.evaluation.reliability import expected_calibration_error, negative_log_likelihood
from darl_rerank.model.calibration import Calibration

# Outside of these a temperature says that the data can't tell (all predictions right, or none), not how sure to be.
TEMPERATURE_BOUNDS = (0.05, 20.0)
SLOPE_BOUNDS = (-3.0, 3.0)
# A grade that the labels don't have would be given no chance at all.
BIAS_BOUNDS = (-3.0, 3.0)


class UndeterminedError(CheckFailedError):
    """A calibration ended at a bound: the pairs can't say how sure to be, and it must not be used."""


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """A fitted calibration with what it changed on the pairs it was fitted to.

    Attributes:
        calibration: what to store in the checkpoint.
        pairs: number of graded pairs.
        nll_before, nll_after: mean negative log-likelihood in nats, at temperature 1 and as fitted.
        ece_before, ece_after: expected calibration error of the most probable grade, 0..1.
        at_bound: what ended at its bound, in words, "" if nothing did: the pairs don't determine it.
    """

    calibration: Calibration
    pairs: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    at_bound: str = ""

    def checked(self) -> CalibrationFit:
        """This fit.

        Raises:
            UndeterminedError: a value ended at its bound.
        """
        if self.at_bound:
            raise UndeterminedError(
                f"{self.pairs} pairs do not determine a calibration: {self.at_bound} ended at the end of its range. "
                "Take more pairs, of every grade, which the model has not been trained on"
            )
        return self


def fit_calibration(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    *,
    novelty: NDArray[np.floating[Any]] | None = None,
    with_novelty: bool = False,
    with_bias: bool = False,
    weights: NDArray[np.floating[Any]] | None = None,
) -> CalibrationFit:
    """The temperature, its slope in novelty and each grade's bias under which the labels are likeliest.

    Sources: see `Calibration`. The likelihood has one optimum in 1 / T; with a slope or biases the search starts from
    the best temperature without them, so it never ends worse.

    Args:
        logits: shape (n, K).
        labels: grades, shape (n,), or probabilities, shape (n, K).
        novelty: shape (n,), percentiles 0..100; needed with `with_novelty`.
        with_novelty: also fit `novelty_slope`.
        with_bias: also fit `bias`; its first value is 0, since only differences count.
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

    def calibrated(x: NDArray[np.float64]) -> Calibration:
        bias = (0.0, *map(float, x[2:])) if with_bias else ()
        return Calibration(float(np.exp(x[0])), float(x[1]), bias)

    def loss(x: NDArray[np.float64]) -> float:
        return float(negative_log_likelihood(labels, calibrated(x).probabilities(logits, novelty), weights))

    bounds = [tuple(np.log(TEMPERATURE_BOUNDS)), SLOPE_BOUNDS if with_novelty else (0.0, 0.0)]
    bounds += [BIAS_BOUNDS] * (logits.shape[1] - 1 if with_bias else 0)
    best = np.zeros(len(bounds))
    found = minimize_scalar(
        lambda t: loss(np.array([t, *best[1:]])), bounds=bounds[0], method="bounded", options={"xatol": 1e-8}
    )
    best[0] = found.x
    if with_novelty or with_bias:
        together = minimize(loss, x0=best, method="L-BFGS-B", bounds=bounds)
        if together.fun < found.fun:
            best = together.x
    calibration = calibrated(best)
    before = Calibration.identity().probabilities(logits)
    after = calibration.probabilities(logits, novelty)
    grades = labels if labels.ndim == 1 else labels.argmax(axis=1)
    names = ["the temperature", "the slope in novelty", *(f"the bias of grade {k}" for k in range(1, logits.shape[1]))]
    ended = [
        name
        for name, value, (low, high) in zip(names, best, bounds, strict=False)
        if low != high and not low + 1e-3 < value < high - 1e-3
    ]
    return CalibrationFit(
        calibration=calibration,
        pairs=len(logits),
        nll_before=float(negative_log_likelihood(labels, before, weights)),
        nll_after=float(negative_log_likelihood(labels, after, weights)),
        ece_before=float(expected_calibration_error(grades, before, weights=weights)),
        ece_after=float(expected_calibration_error(grades, after, weights=weights)),
        at_bound=" and ".join(ended),
    )


def determined_calibration(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    novelty: NDArray[np.floating[Any]],
    *,
    weights: NDArray[np.floating[Any]],
    with_novelty: bool,
    with_bias: bool,
    earlier: Calibration,
) -> CalibrationFit:
    """The richest calibration that the pairs determine: without biases, then without slope, if these end at a bound.

    Where not even the temperature is determined (all predictions right, say), the fit is `earlier`: a temperature at
    its bound would make the model as sure of everything as of a few easy pairs.

    Args:
        logits, labels, novelty, weights, with_novelty, with_bias: as for `fit_calibration`.
        earlier: the calibration that the model has had so far.

    Returns:
        the fit, whose `at_bound` names what was left out for it.
    """
    left_out: list[str] = []
    for slope, bias in dict.fromkeys([(with_novelty, with_bias), (with_novelty, False), (False, False)]):
        fit = fit_calibration(
            logits, labels, novelty=novelty, with_novelty=slope, with_bias=bias, weights=weights
        )  # fmt: skip
        if not fit.at_bound:
            return replace(fit, at_bound=" and ".join(left_out))
        left_out += [part for part in fit.at_bound.split(" and ") if part not in left_out]
    probabilities = earlier.probabilities(logits, novelty)
    grades = labels if labels.ndim == 1 else labels.argmax(axis=1)
    return replace(
        fit,
        calibration=earlier,
        nll_after=float(negative_log_likelihood(labels, probabilities, weights)),
        ece_after=float(expected_calibration_error(grades, probabilities, weights=weights)),
        at_bound=" and ".join(left_out),
    )
