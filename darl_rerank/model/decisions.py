"""Decisions: what a checkpoint makes of its scores. Grades, cuts with a guarantee, the weight of its order in a fusion.

All of it is fitted on graded pairs (`darl_rerank.training.decisions`), kept in the manifest, and optional: a checkpoint
without fitted cut points gives the grade whose gain is nearest to the score.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .scale import RelevanceScale

Kind = Literal["recall", "precision"]
_PROMISE = re.compile(r"\s*(recall|precision)\s+([0-9.]+(?:e-?[0-9]+)?)\s+of\s+(.+?)\s*", re.IGNORECASE)


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
        """The grade of each score, any shape; -1 for NaN, the score of what was not judged."""
        score = np.asarray(score, dtype=np.float64)
        grade = np.searchsorted(self.points, score, side="right")
        return np.asarray(np.where(np.isnan(score), -1, grade), dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a cut is to hold, on average over queries like those it was fitted on.

    Attributes:
        kind: "recall": of the documents of `grade` or better, this share is kept; "precision": of those kept, this
            share is of `grade` or better (a query of which nothing is kept counts as 1).
        level: that share, above 0 and below 1. α, the risk allowed, is 1 - level.
        grade: 1..K-1.

    Raises:
        InputError: another kind, or a level that is not between 0 and 1.
    """

    kind: Kind
    level: float
    grade: int

    def __post_init__(self) -> None:
        if self.kind not in ("recall", "precision"):
            raise InputError(f"a cut promises recall or precision, not {self.kind!r}")
        if not 0 < self.level < 1:
            raise InputError(f"a cut can promise a {self.kind} above 0 and below 1, not {self.level:g}")

    @classmethod
    def parse(cls, text: str, scale: RelevanceScale) -> Promise:
        """Read "recall 0.9 of relevant".

        Raises:
            InputError: another form, a level that is not between 0 and 1, or a grade that the scale lacks.
        """
        found = _PROMISE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InputError(
                f"expected a cut like 'recall 0.9 of relevant' or 'precision 0.8 of relevant', got {text!r}"
            )
        try:
            level = float(found[2])
        except ValueError:
            raise InputError(f"expected a number between 0 and 1 in the cut {text!r}, got {found[2]!r}") from None
        kind: Kind = "recall" if found[1].lower() == "recall" else "precision"
        return cls(kind, level, grade_above_lowest(found[3], scale))

    def text(self, scale: RelevanceScale) -> str:
        """The form that `parse` reads."""
        return f"{self.kind} {self.level:g} of {scale.grades[self.grade].name}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A threshold on P(grade >= g), fitted to hold a promise.

    Attributes:
        promise: what it holds.
        threshold: documents whose P(grade >= g) reaches it are kept.
        novelty: the mean novelty that nineteen in twenty of the queries it was fitted on stay below; None where the
            checkpoint has no novelty. A query above it is not like them, and the promise is not for it.
        facts: queries, pairs, confidence, date, …; JSON types.
    """

    promise: Promise
    threshold: float
    novelty: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def keeps(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which of n documents are kept, probabilities of shape (n, K)."""
        return reaches(probabilities, self.promise.grade) >= self.threshold

    def to_dict(self, scale: RelevanceScale) -> dict[str, Any]:
        return {
            "promise": self.promise.text(scale), "threshold": self.threshold, "novelty": self.novelty,
            "facts": dict(self.facts),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], scale: RelevanceScale) -> Cut:
        """The inverse of `to_dict`; KeyError, TypeError or ValueError where a value is missing or none."""
        novelty = values["novelty"]
        return cls(
            Promise.parse(values["promise"], scale),
            float(values["threshold"]),
            None if novelty is None else float(novelty),
            values["facts"],
        )


@dataclass(frozen=True, slots=True)
class FusionWeight:
    """What the model's order counts beside the first stage's when both are fused.

    Both scores are standardised within the query; the fused one is w · model + (1 - w) · first stage, with
    w = weight - novelty_slope · max(0, novelty - 50) / 50, kept within 0..1, and novelty the mean of the documents'.

    Attributes:
        weight: of the model, for queries like those it knows, 0..1.
        novelty_slope: by how much it falls from novelty 50 to 100, >= 0.
        facts: how it was fitted, JSON types.

    Raises:
        InputError: a value out of its range.
    """

    weight: float = 0.7
    novelty_slope: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or not 0 <= self.novelty_slope <= 1:
            raise InputError(
                f"a fusion needs a weight and a novelty slope within 0..1, got {self.weight}, {self.novelty_slope}"
            )

    def at(self, novelty: float | None) -> float:
        """The model's weight for a query whose documents have this mean novelty; None if it is not known."""
        strange = 0.0 if novelty is None or np.isnan(novelty) else max(0.0, novelty - 50) / 50
        return float(np.clip(self.weight - self.novelty_slope * strange, 0, 1))


@dataclass(frozen=True, slots=True)
class Decisions:
    """All of a checkpoint's decisions; each part may be missing.

    Attributes:
        grades: cut points between grades; None for `GradeCuts.nearest`.
        cuts: thresholds that hold a promise.
        fusion: the model's weight in a fusion; None for `FusionWeight()`.
    """

    grades: GradeCuts | None = None
    cuts: tuple[Cut, ...] = ()
    fusion: FusionWeight | None = None

    def cut(self, text: str, scale: RelevanceScale) -> Cut:
        """The cut that holds a promise such as "recall 0.9 of relevant".

        Raises:
            InputError: the promise can't be read, or no such cut was fitted.
        """
        promise = Promise.parse(text, scale)
        for cut in self.cuts:
            if cut.promise == promise:
                return cut
        have = ", ".join(repr(cut.promise.text(scale)) for cut in self.cuts) or "none"
        raise InputError(
            f"the checkpoint has no cut {promise.text(scale)!r} (it has: {have}); "
            "`darl-rerank calibrate --cut` fits one"
        )

    def to_dict(self, scale: RelevanceScale) -> dict[str, Any]:
        """JSON types, of the parts that are there."""
        values: dict[str, Any] = {}
        if self.grades is not None:
            values["grades"] = {"points": list(self.grades.points), "facts": dict(self.grades.facts)}
        if self.cuts:
            values["cuts"] = [cut.to_dict(scale) for cut in self.cuts]
        if self.fusion is not None:
            fusion = self.fusion
            values["fusion"] = {
                "weight": fusion.weight, "novelty_slope": fusion.novelty_slope, "facts": dict(fusion.facts),
            }  # fmt: skip
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], scale: RelevanceScale) -> Decisions:
        """The inverse of `to_dict`.

        Raises:
            InputError: a value is missing or not what it should be, or belongs to another scale.
        """
        try:
            grades, fusion = values.get("grades"), values.get("fusion")
            found = cls(
                grades=None if grades is None else GradeCuts(tuple(map(float, grades["points"])), grades["facts"]),
                cuts=tuple(Cut.from_dict(cut, scale) for cut in values.get("cuts", ())),
                fusion=None
                if fusion is None
                else FusionWeight(float(fusion["weight"]), float(fusion["novelty_slope"]), fusion["facts"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"expected grades, cuts and fusion as a checkpoint is saved with them: {error}") from error
        if found.grades is not None and len(found.grades.points) != len(scale) - 1:
            raise InputError(
                f"{len(found.grades.points)} cut points for {len(scale)} grades: they are from another scale"
            )
        return found


def grade_above_lowest(name: str | int, scale: RelevanceScale) -> int:
    """The number of a grade given by name or number, which is not the lowest: everything reaches that.

    Raises:
        InputError: the scale has no such grade, or it is the lowest.
    """
    names = [grade.name for grade in scale.grades]
    grade = names.index(name) if name in names else int(name) if str(name).isdecimal() else -1
    if not 0 <= grade < len(names):
        raise InputError(f"the scale {scale.name!r} has no grade {name!r}; it has: {', '.join(names)}")
    if grade == 0:
        raise InputError(f"every document is {names[0]!r} or better: give one of {', '.join(names[1:])}")
    return grade


def reaches(probabilities: NDArray[np.floating[Any]], grade: int) -> NDArray[np.float64]:
    """P(grade or better), shape (n, K) to (n,)."""
    return np.asarray(np.asarray(probabilities, dtype=np.float64)[:, grade:].sum(axis=1))
