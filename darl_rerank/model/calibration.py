"""Calibration: turns grade logits into probabilities that can be read as frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    Raises:
        InputError: a temperature that is not a positive number, or a slope or bias that is not finite.
    """

    temperature: float = 1.0
    novelty_slope: float = 0.0
    bias: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"a calibration temperature must be a positive number, got {self.temperature}")
        if not np.isfinite(self.novelty_slope):
            raise InputError(f"a calibration's novelty slope must be finite, got {self.novelty_slope}")
        if not np.isfinite(self.bias).all():
            raise InputError(f"a calibration's biases must be finite, got {self.bias}")

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
        return Calibration(float(self.temperatures(1, np.array([novelty]))[0]), bias=self.bias)

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
        return {**values, "bias": list(self.bias)} if self.bias else values

    def __str__(self) -> str:
        told = f"temperature {self.temperature:.3f}, novelty slope {self.novelty_slope:.3f}"
        return f"{told}, biases {' '.join(f'{value:+.2f}' for value in self.bias)}" if self.bias else told

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        try:
            bias = tuple(float(value) for value in values.get("bias", ()))
            return cls(float(values["temperature"]), float(values.get("novelty_slope", 0.0)), bias)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a calibration needs temperature, and may have novelty_slope and bias: {error}"
            ) from error


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the last axis, safe for any finite logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result
