"""What a reranker returns: one `RankedDocument` a document, and its serialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document after reranking.

    Attributes:
        rank: place in the ranking, from 1.
        index: place of the document in the list that was passed in, from 0.
        docid: the document's id, if it had one.
        document: the object that was passed in, untouched.
        score: expected gain, sum over grades of probability times gain; documents are ordered by it.
        grade: the most probable grade, 0 the lowest.
        grade_name: the name the scale gives to that grade.
        probabilities: calibrated probability of every grade, lowest first; they sum to 1.
        novelty: how far the pair lies from what the model was trained on, as a percentile (0 to 100) of held-out
            in-distribution pairs; None where the checkpoint has no novelty statistics.
        truncated: whether the document was cut to fit the model's length.
    """

    rank: int
    index: int
    docid: str | None
    document: Any = field(repr=False)
    score: float
    grade: int
    grade_name: str
    probabilities: tuple[float, ...]
    novelty: float | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All but the document itself, as JSON types; floats unrounded."""
        return {
            "rank": self.rank,
            "docid": self.docid,
            "score": self.score,
            "grade": self.grade,
            "grade_name": self.grade_name,
            "probabilities": list(self.probabilities),
            "novelty": self.novelty,
            "truncated": self.truncated,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, index: int = 0, document: Any = None) -> RankedDocument:
        """The inverse of `to_dict`; `index` and `document` are not serialised and are given again."""
        return cls(
            rank=int(values["rank"]),
            index=index,
            docid=values["docid"],
            document=document,
            score=float(values["score"]),
            grade=int(values["grade"]),
            grade_name=str(values["grade_name"]),
            probabilities=tuple(float(p) for p in values["probabilities"]),
            novelty=None if values["novelty"] is None else float(values["novelty"]),
            truncated=bool(values["truncated"]),
        )


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a reranker says of n pairs, as arrays; `scores[key]` takes the pairs that a slice or index array names.

    Attributes:
        logits: grade logits before calibration, shape (n, K), float32.
        probabilities: calibrated, shape (n, K), float64; rows sum to 1.
        score: expected gain, shape (n,).
        grade: the most probable grade, shape (n,), int.
        novelty: percentile 0 to 100, shape (n,), or None where the checkpoint has no novelty statistics.
        features: novelty features, shape (n, F), or None if not asked for.
        truncated: whether the document was cut, shape (n,), bool.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    score: NDArray[np.float64]
    grade: NDArray[np.intp]
    novelty: NDArray[np.float64] | None
    features: NDArray[np.float32] | None
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, key: slice | NDArray[np.intp]) -> PairScores:
        return PairScores(
            logits=self.logits[key],
            probabilities=self.probabilities[key],
            score=self.score[key],
            grade=self.grade[key],
            novelty=None if self.novelty is None else self.novelty[key],
            features=None if self.features is None else self.features[key],
            truncated=self.truncated[key],
        )
