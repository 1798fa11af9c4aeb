"""What a caller asks of a ranking beyond its order: which documents stay out, how much the first stage counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arguments import is_number
from .documents import QueryGroup, first_value
from .errors import InputError
from .model.calibration import check_prevalence, estimate_prevalence
from .model.checkpoint import Checkpoint
from .model.decisions import Cut, FusionWeight, grade_above_lowest, reaches
from .model.scoring import scored
from .results import PairScores
from .trec.fusion import fuse_scores

Fuse = Literal["auto"]
Prevalence = Sequence[float] | Literal["estimate"]


@dataclass(frozen=True, slots=True)
class Rules:
    """`Reranker.rerank`'s arguments, checked against a checkpoint.

    Attributes:
        checkpoint: whose.
        fusion: the model's weight beside the first stage's order; None to order by the model alone.
        cut: a fitted threshold that documents must reach.
        grade: the lowest grade that is kept.
        probability: of `grade` or better that is kept; None to go by the grade itself.
        prevalence: shares of the grades in the caller's traffic, "estimate", or None.
    """

    checkpoint: Checkpoint
    fusion: FusionWeight | None = None
    cut: Cut | None = None
    grade: int | None = None
    probability: float | None = None
    prevalence: Prevalence | None = None

    @classmethod
    def read(
        cls,
        checkpoint: Checkpoint,
        *,
        fuse: Fuse | None = None,
        cut: str | None = None,
        min_grade: str | int | None = None,
        min_probability: float | None = None,
        prevalence: Prevalence | None = None,
    ) -> Rules:
        """The rules that these arguments of `Reranker.rerank` make.

        Raises:
            InputError: one that is not what it should be, or two that don't go together.
        """
        if fuse not in (None, "auto"):
            raise InputError(f"fuse must be 'auto' or None, got {fuse!r}")
        if min_probability is not None:
            if min_grade is None:
                raise InputError("min_probability is the probability of a grade or a better one: give min_grade too")
            if not (is_number(min_probability) and 0 < min_probability <= 1):
                raise InputError(f"min_probability must be above 0 and at most 1, got {min_probability!r}")
        if cut is not None and prevalence is not None:
            raise InputError("a cut holds for the probabilities it was calibrated on: give it without prevalence")
        if prevalence is not None:
            own = checkpoint.calibration.prevalence
            if not own:
                # It says what is missing.
                checkpoint.calibration.for_prevalence(())
            if isinstance(prevalence, str):
                if prevalence != "estimate":
                    raise InputError(f"prevalence must be a share for each grade or 'estimate', got {prevalence!r}")
            else:
                check_prevalence(prevalence, len(own))
        decisions, scale = checkpoint.decisions, checkpoint.scale
        return cls(
            checkpoint,
            fusion=(decisions.fusion or FusionWeight()) if fuse == "auto" else None,
            cut=None if cut is None else decisions.cut(cut, scale),
            grade=None if min_grade is None else grade_above_lowest(min_grade, scale),
            probability=min_probability,
            prevalence=prevalence,
        )

    def shifted(self, scores: PairScores) -> PairScores:
        """One query's scores for the traffic's prevalence; as they are if none was given."""
        if self.prevalence is None or not scores.judged.any():
            return scores
        calibration = self.checkpoint.calibration
        judged = scores.judged
        shares = (
            estimate_prevalence(scores.probabilities[judged], calibration.prevalence)
            if isinstance(self.prevalence, str)
            else self.prevalence
        )
        novelty = None if scores.novelty is None else scores.novelty[judged]
        left = None if scores.exit_layers is None else scores.exit_layers[judged]
        probabilities, score = scores.probabilities.copy(), scores.score.copy()
        probabilities[judged], score[judged] = scored(
            self.checkpoint, scores.logits[judged], novelty, left, prevalence=shares
        )
        return replace(scores, probabilities=probabilities, score=score, grade=self.checkpoint.grade_cuts.grades(score))

    def kept(self, scores: PairScores) -> NDArray[np.bool_]:
        """Which of n documents stay, shape (n,); one that was not judged does, as nothing is known against it."""
        keep = np.ones(len(scores), dtype=bool)
        if self.cut is not None:
            keep &= self.cut.keeps(scores.probabilities)
        if self.grade is not None and self.probability is not None:
            keep &= reaches(scores.probabilities, self.grade) >= self.probability
        elif self.grade is not None:
            keep &= scores.grade >= self.grade
        return np.asarray(keep | ~scores.judged)

    def order(self, group: QueryGroup, scores: PairScores) -> tuple[NDArray[np.intp], NDArray[np.float64] | None]:
        """Places of the n documents, best first, and the fused score of each, or None without fusion.

        Documents that were not judged come last, in the input's order.
        """
        if self.fusion is None:
            # NaN, the score of a document that was not judged, sorts behind every number.
            return np.argsort(-scores.score, kind="stable"), None
        judged = np.flatnonzero(scores.judged)
        fused = np.full(len(scores), np.nan)
        first = _first_stage(group, judged)
        fused[judged] = fuse_scores(first, scores.score[judged], self.fusion.at(_mean_novelty(scores)))
        return np.argsort(-fused, kind="stable"), fused

    def warnings(self, scores: PairScores) -> list[str]:
        """What speaks against acting on this query's ranking."""
        novelty = _mean_novelty(scores)
        if self.cut is None or self.cut.novelty is None or novelty is None or novelty <= self.cut.novelty:
            return []
        promise = self.cut.promise.text(self.checkpoint.scale)
        return [
            f"the cut {promise!r} holds for queries like those it was calibrated on; this one's novelty is "
            f"{novelty:.0f}, 19 in 20 of theirs were below {self.cut.novelty:.0f}"
        ]


def _mean_novelty(scores: PairScores) -> float | None:
    """Of the judged documents whose novelty is known; None if it is of none."""
    if scores.novelty is None:
        return None
    # NaN where a document was not judged, or left the model before the layers that novelty looks at.
    known = scores.novelty[np.isfinite(scores.novelty)]
    return float(known.mean()) if len(known) else None


def _first_stage(group: QueryGroup, places: NDArray[np.intp]) -> NDArray[np.float64] | None:
    """The first stage's scores of the documents in these places; None unless each has a finite one."""
    found = [_score(group.documents[i].document) for i in places]
    return None if any(score is None for score in found) else np.array(found, dtype=np.float64)


def _score(document: Any) -> float | None:
    if isinstance(document, str):
        return None
    try:
        value = first_value(document, ("score",))
        score = math.nan if value is None else float(value)
    # As in reading a document's text: foreign classes may raise anything.
    except Exception:
        return None
    return score if math.isfinite(score) else None
