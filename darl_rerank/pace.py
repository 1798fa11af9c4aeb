"""Pace: how long the engine takes for so many tokens, learnt from its own runs."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Runs that are remembered: enough for a line, few enough to follow a machine that becomes busy.
_REMEMBERED = 32
# A cautious prediction is one within which this part of the remembered runs ended.
_CAUTION = 0.9


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds that a run takes, as a linear function of its tokens.

    Attributes:
        fixed: seconds of any run.
        each: seconds a token.
        caution: what the line is multiplied by so that nine in ten of the remembered runs ended in time; at least 1.
        fastest: the least seconds a token of any run ever.
    """

    fixed: float
    each: float
    caution: float
    fastest: float

    def cautious(self, tokens: int) -> float:
        """Seconds within which a run of `tokens` tokens should end."""
        return (self.fixed + self.each * tokens) * self.caution

    def least(self, tokens: int) -> float:
        """Seconds below which no run of `tokens` tokens can be expected to stay, on however quiet a machine."""
        return self.fastest * tokens


class Pace:
    """What the engine's last runs took. Thread-safe."""

    def __init__(self) -> None:
        self._runs: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._fastest = math.inf
        self._lock = threading.Lock()

    def observe(self, tokens: int, seconds: float) -> None:
        """A run of `tokens` tokens, at least 1, took `seconds`."""
        with self._lock:
            self._runs.append((tokens, max(seconds, 1e-9)))
            self._fastest = min(self._fastest, seconds / tokens)

    def prediction(self) -> Prediction | None:
        """Fitted to the last runs by their relative errors; None if there was none yet."""
        with self._lock:
            runs, fastest = np.array(self._runs, dtype=np.float64), self._fastest
        if not len(runs):
            return None
        sizes, seconds = runs.T
        fixed, each = _line(sizes, seconds)
        caution = float(np.quantile(seconds / (fixed + each * sizes), _CAUTION))
        return Prediction(fixed, each, max(1.0, caution), fastest)


def _line(sizes: NDArray[Any], seconds: NDArray[Any]) -> tuple[float, float]:
    """Fixed seconds and seconds a token, neither negative, with the least squared relative error."""
    design = np.stack([1 / seconds, sizes / seconds], axis=1)
    fixed, each = np.linalg.lstsq(design, np.ones(len(seconds)), rcond=None)[0]
    if fixed < 0 or each < 0 or np.ptp(sizes) == 0:
        # Through the origin: a larger run is never predicted to be as short as a small one.
        return 0.0, float((sizes / seconds).sum() / ((sizes / seconds) ** 2).sum())
    return float(fixed), float(each)
