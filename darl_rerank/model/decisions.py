"""Decisions: what a checkpoint makes of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .scale import RelevanceScale


@dataclass(frozen=True, slots=True)
class GradeCuts:
    """Where on the score one grade ends and the next begins, so that grade and order never disagree.

    Attributes:
        points: the lowest score of every grade but the first, rising, K - 1 values.
        facts: how they were fitted, JSON types; empty if they were not.

    Raises:
        InputError: a point is not finite, or they don't rise.
    """

    points: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.points).all() or any(low >= high for low, high in pairwise(self.points)):
            raise InputError(f"the cut points between grades must be finite and rise, got {list(self.points)}")

    @classmethod
    def nearest(cls, scale: RelevanceScale) -> GradeCuts:
        """The grade whose gain is nearest to the score: what is right under squared error, and needs no fit."""
        return cls(tuple((low + high) / 2 for low, high in pairwise(map(float, scale.gains))))

    def grades(self, score: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
        """The grade of each score, any shape."""
        return np.asarray(np.searchsorted(self.points, score, side="right"), dtype=np.intp)
