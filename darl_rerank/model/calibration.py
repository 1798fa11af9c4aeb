"""Calibration: turns grade logits into probabilities that can be read as frequencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import is_number
from ..errors import InputError


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperature scaling, optionally with a temperature that grows with novelty and a bias for each grade.

    p = softmax(z / T + bias), T = temperature · exp(novelty_slope · novelty / 100). One temperature for all pairs is
    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017); a temperature that follows the distance from the
    training set makes a model less sure of pairs unlike those it has learned from. The bias is Alexandari et al.,
    "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation" (ICML 2020): where
    grades are rarer or more frequent than in training, no temperature can say so.

    Attributes:
        temperature: > 0; 1 leaves the logits alone, more flattens the distribution.
        novelty_slope: by how much log T grows from the most familiar pair (novelty 0) to the strangest (100); 0
            ignores novelty.
        bias: what is added to each grade's scaled logit, K values; none if empty.
        prevalence: the share of each grade among the pairs that the probabilities belong to, K values that sum to 1;
            empty if it is not known.

    Raises:
        InputError: a temperature that is not a positive number, a slope or bias that is not finite, or a prevalence
            that is none.
    """

    temperature: float = 1.0
    novelty_slope: float = 0.0
    bias: tuple[float, ...] = ()
    prevalence: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"a calibration temperature must be a positive number, got {self.temperature}")
        if not np.isfinite(self.novelty_slope):
            raise InputError(f"a calibration's novelty slope must be finite, got {self.novelty_slope}")
        if not np.isfinite(self.bias).all():
            raise InputError(f"a calibration's biases must be finite, got {self.bias}")
        if self.prevalence:
            check_prevalence(self.prevalence, len(self.bias) or len(self.prevalence))

    @classmethod
    def identity(cls) -> Calibration:
        """The calibration that changes nothing."""
        return cls()

    @property
    def needs_novelty(self) -> bool:
        """Whether `probabilities` must be given the pairs' novelty."""
        return self.novelty_slope != 0.0

    def at(self, novelty: float) -> Calibration:
        """One temperature for all pairs: that of a pair of this novelty, a percentile 0..100."""
        temperature = float(self.temperatures(1, np.array([novelty]))[0])
        return Calibration(temperature, bias=self.bias, prevalence=self.prevalence)

    def for_prevalence(self, prevalence: Sequence[float]) -> Calibration:
        """The calibration for traffic in which the grades have other shares.

        p'(k) ∝ p(k) · π'(k) / π(k), which holds if documents of one grade look alike in both (label shift: Saerens,
        Latinne and Decaestecker, 2002; Alexandari et al. 2020). A factor on a probability is a bias on its logit.

        Args:
            prevalence: π', K shares that sum to 1, each above 0.

        Raises:
            InputError: not such shares, or the calibration does not know which its probabilities belong to.
        """
        if not self.prevalence:
            raise InputError(
                "the checkpoint does not say which shares of the grades its probabilities belong to; "
                "`darl-rerank calibrate` finds out"
            )
        check_prevalence(prevalence, len(self.prevalence))
        bias = self.bias or (0.0,) * len(self.prevalence)
        shifted = [b + float(np.log(new / own)) for b, new, own in zip(bias, prevalence, self.prevalence, strict=True)]
        return Calibration(self.temperature, self.novelty_slope, tuple(shifted), tuple(map(float, prevalence)))

    def temperatures(self, count: int, novelty: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float64]:
        """The temperature of each of `count` pairs, shape (count,).

        Raises:
            InputError: novelty is needed and missing, or not of shape (count,).
        """
        if not self.needs_novelty:
            return np.full(count, self.temperature)
        if novelty is None:
            raise InputError("this calibration depends on novelty, but none was given: the model's features are needed")
        novelty = np.asarray(novelty, dtype=np.float64)
        if novelty.shape != (count,):
            raise InputError(f"novelty must have shape ({count},), got {novelty.shape}")
        return np.asarray(self.temperature * np.exp(self.novelty_slope * novelty / 100.0))

    def probabilities(
        self, logits: NDArray[np.floating[Any]], novelty: NDArray[np.floating[Any]] | None = None
    ) -> NDArray[np.float64]:
        """Calibrated probability of every grade, rows summing to 1.

        Args:
            logits: shape (n, K).
            novelty: shape (n,), percentiles 0..100; needed if `needs_novelty`, else not looked at.

        Returns:
            shape (n, K).

        Raises:
            InputError: the shape is another, or there are not as many biases as grades.
        """
        logits = np.asarray(logits, dtype=np.float64)
        if logits.ndim != 2:
            raise InputError(f"logits must have shape (n, K), got {logits.shape}")
        if self.bias and len(self.bias) != logits.shape[1]:
            raise InputError(f"the calibration has biases for {len(self.bias)} grades, not for {logits.shape[1]}")
        scaled = logits / self.temperatures(len(logits), novelty)[:, None]
        return softmax(scaled + np.array(self.bias) if self.bias else scaled)

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"temperature": self.temperature, "novelty_slope": self.novelty_slope}
        if self.bias:
            values["bias"] = list(self.bias)
        if self.prevalence:
            values["prevalence"] = list(self.prevalence)
        return values

    def __str__(self) -> str:
        told = f"temperature {self.temperature:.3f}, novelty slope {self.novelty_slope:.3f}"
        return f"{told}, biases {' '.join(f'{value:+.2f}' for value in self.bias)}" if self.bias else told

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        try:
            bias = tuple(float(value) for value in values.get("bias", ()))
            prevalence = tuple(float(value) for value in values.get("prevalence", ()))
            return cls(float(values["temperature"]), float(values.get("novelty_slope", 0.0)), bias, prevalence)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a calibration needs temperature, and may have novelty_slope, bias and prevalence: {error}"
            ) from error


def check_prevalence(prevalence: Sequence[float], grades: int) -> None:
    """Raise InputError unless these are shares of `grades` grades, each above 0, that sum to 1."""
    given = list(prevalence) if isinstance(prevalence, (Sequence, np.ndarray)) else []
    shares = np.array(given if all(map(is_number, given)) else [], dtype=np.float64)
    if shares.shape != (grades,) or not (np.isfinite(shares) & (shares > 0)).all() or abs(shares.sum() - 1) > 1e-3:
        raise InputError(
            f"a prevalence is the share of each of the {grades} grades, the lowest first, all above 0 and 1 in sum; "
            f"got {given or prevalence!r:.100}"
        )


def estimate_prevalence(
    probabilities: NDArray[np.floating[Any]], prevalence: Sequence[float], *, held: float = 0.5, rounds: int = 1000
) -> tuple[float, ...]:
    """The shares of the grades in unlabelled traffic, from what the model says of it.

    Expectation maximisation of Saerens et al. (2002): π'(k) is the mean of p'(k), and p' follows from π'. The plain
    maximum of the likelihood runs off to a single grade where the probabilities are as flat as a small model's, so the
    shares are drawn towards the known ones, as a Dirichlet prior does.

    Args:
        probabilities: calibrated, shape (n, K).
        prevalence: the shares they belong to, K values above 0.
        held: what the known shares weigh beside the pairs, 0..1; 0 is the maximum of the likelihood.
        rounds: at most so many.

    Returns:
        K shares that sum to 1.

    Raises:
        InputError: no pairs, or not such shares.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or not len(probabilities):
        raise InputError(f"a prevalence is estimated from probabilities (n, K), n > 0, got {probabilities.shape}")
    check_prevalence(prevalence, probabilities.shape[1])
    known = np.asarray(prevalence, dtype=np.float64)
    shares = known
    for _ in range(rounds):
        shifted = probabilities * (shares / known)
        found = (1 - held) * (shifted / shifted.sum(axis=1, keepdims=True)).mean(axis=0) + held * known
        settled = np.abs(found - shares).max() < 1e-9
        shares = found
        if settled:
            break
    return tuple(float(share) for share in shares / shares.sum())


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis, safe for any finite logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result
