"""RelevanceScale: the ordered grades of a model, the words that name them to the LLM, and what each is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class Grade:
    """One level of a scale.

    Attributes:
        name: what people read, e.g. "relevant".
        words: what the LLM may answer for this grade; their LM-head rows start the grade's head row.
        gain: what one document of this grade is worth in the score, and in nDCG.
    """

    name: str
    words: tuple[str, ...]
    gain: float


@dataclass(frozen=True, slots=True)
class RelevanceScale:
    """Ordered grades, the lowest first; grade k is `grades[k]`.

    Raises:
        InputError: fewer than two grades, a repeated name or word, or gains that do not rise with the grade.
    """

    name: str
    grades: tuple[Grade, ...]

    def __post_init__(self) -> None:
        names = [grade.name for grade in self.grades]
        words = [word for grade in self.grades for word in grade.words]
        gains = [grade.gain for grade in self.grades]
        if len(self.grades) < 2:
            raise InputError(f"scale {self.name!r} needs at least two grades, got {len(self.grades)}")
        if len(set(names)) < len(names):
            raise InputError(f"scale {self.name!r} names a grade twice: {', '.join(names)}")
        if len(set(words)) < len(words) or not all(grade.words for grade in self.grades):
            raise InputError(f"scale {self.name!r} needs words for every grade, none of them used twice: {words}")
        if not np.isfinite(gains).all() or any(low >= high for low, high in pairwise(gains)):
            raise InputError(f"scale {self.name!r} needs finite gains that rise with the grade, got {gains}")

    def __len__(self) -> int:
        return len(self.grades)

    @property
    def gains(self) -> NDArray[np.float64]:
        """Gain of every grade, shape (K,)."""
        return np.array([grade.gain for grade in self.grades], dtype=np.float64)

    def expected_gain(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The score of each row: sum over grades of probability times gain, shape (n, K) to (n,).

        Not a matrix product, whose rounding of a row depends on how many rows there are.
        """
        return np.asarray((probabilities * self.gains).sum(axis=1), dtype=np.float64)

    def relevance(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected gains as shares of the range of gains, in [0, 1], shape as given; 0 for NaN, what was not judged."""
        low, high = self.gains[0], self.gains[-1]
        shares: NDArray[np.float64] = np.nan_to_num(np.clip((scores - low) / (high - low), 0.0, 1.0), nan=0.0)
        return shares

    @classmethod
    def named(cls, name: str) -> RelevanceScale:
        """One of the scales that come with the package; see `SCALES`."""
        if name not in SCALES:
            raise InputError(f"unknown relevance scale {name!r}; known: {', '.join(sorted(SCALES))}")
        return SCALES[name]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "grades": [{"name": g.name, "words": list(g.words), "gain": g.gain} for g in self.grades],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelevanceScale:
        try:
            for grade in values["grades"]:
                if isinstance(grade["words"], str) or not all(isinstance(word, str) for word in grade["words"]):
                    raise TypeError(f"words must be a list of strings, got {grade['words']!r}")
            grades = tuple(Grade(str(g["name"]), tuple(g["words"]), float(g["gain"])) for g in values["grades"])
            return cls(str(values["name"]), grades)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a relevance scale needs name and grades with name, words and gain: {error}") from error


# The words are chosen to begin with different tokens: a grade is told from another by its first token.
SCALES: dict[str, RelevanceScale] = {
    scale.name: scale
    for scale in (
        RelevanceScale("binary", (Grade("irrelevant", ("No",), 0.0), Grade("relevant", ("Yes",), 1.0))),
        RelevanceScale(
            "ternary",
            (
                Grade("irrelevant", ("None",), 0.0),
                Grade("weak", ("Partial",), 1.0),
                Grade("strong", ("Strong",), 2.0),
            ),
        ),
        RelevanceScale(
            "trec4",
            (
                Grade("irrelevant", ("None",), 0.0),
                Grade("related", ("Low",), 1.0),
                Grade("relevant", ("High",), 2.0),
                Grade("perfect", ("Perfect",), 3.0),
            ),
        ),
    )
}
