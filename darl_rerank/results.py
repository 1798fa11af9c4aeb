"""What a reranker returns: a `Ranking` of `RankedDocument`s, or `PairScores`; and their serialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Characters of a document that its representation shows.
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document after reranking.

    A document that was not judged (`judged` is False) stands behind all that were, in the order of the input; it has
    neither score nor grade, and `reason` says why.

    Attributes:
        rank: place in the ranking, from 1.
        index: place of the document in the list that was passed in, from 0.
        docid: the document's id, if it had one.
        document: the object that was passed in, untouched.
        score: expected gain, sum over grades of probability times gain, by which documents are ordered; None if not
            judged.
        grade: the grade, 0 the lowest; None if not judged.
        grade_name: the name the scale gives to that grade; None if not judged.
        probabilities: calibrated probability of every grade, lowest first; they sum to 1. Empty if not judged.
        novelty: how far the pair lies from what the model was trained on, as a percentile (0 to 100) of held-out
            in-distribution pairs; None where the checkpoint has no novelty statistics, or the pair left the model
            before the layers that they look at.
        truncated: whether the document was cut to fit the model's length, or with long_documents="window" to 256
            windows.
        query_truncated: whether the query was.
        judged: whether the model has judged it.
        reason: why it was not judged; None if it was.
        fused: with a fusion, its score, by which documents are then ordered; None without one.
        exit_layer: behind which layer the pair left the model early, whose exit its probabilities are then of and whose
            score lies below those of pairs that were run whole; None if it was run whole.
        span: with long_documents="window", where in `text` the best window is: `text[start:end]`; None otherwise.
        text: title and text as they were read from `document`; not serialised.
    """

    rank: int
    index: int
    docid: str | None
    document: Any
    score: float | None
    grade: int | None
    grade_name: str | None
    probabilities: tuple[float, ...]
    novelty: float | None = None
    truncated: bool = False
    query_truncated: bool = False
    judged: bool = True
    reason: str | None = None
    fused: float | None = None
    exit_layer: int | None = None
    span: tuple[int, int] | None = None
    text: str = field(default="", compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the document itself and its text, as JSON types; floats unrounded."""
        return {
            "rank": self.rank,
            "index": self.index,
            "docid": self.docid,
            "score": self.score,
            "grade": self.grade,
            "grade_name": self.grade_name,
            "probabilities": list(self.probabilities),
            "novelty": self.novelty,
            "truncated": self.truncated,
            "query_truncated": self.query_truncated,
            "judged": self.judged,
            "reason": self.reason,
            "span": None if self.span is None else list(self.span),
            **({} if self.fused is None else {"fused": self.fused}),
            **({} if self.exit_layer is None else {"exit_layer": self.exit_layer}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, document: Any = None, text: str = "") -> RankedDocument:
        """The inverse of `to_dict`; `document` and `text` are not serialised and may be given again."""
        span = values.get("span")
        return cls(
            rank=int(values["rank"]),
            index=int(values["index"]),
            docid=values["docid"],
            document=document,
            score=None if values["score"] is None else float(values["score"]),
            grade=None if values["grade"] is None else int(values["grade"]),
            grade_name=values["grade_name"],
            probabilities=tuple(float(p) for p in values["probabilities"]),
            novelty=None if values["novelty"] is None else float(values["novelty"]),
            truncated=bool(values["truncated"]),
            query_truncated=bool(values.get("query_truncated", False)),
            judged=bool(values.get("judged", True)),
            reason=values.get("reason"),
            fused=values.get("fused"),
            exit_layer=values.get("exit_layer"),
            span=None if span is None else (int(span[0]), int(span[1])),
            text=text,
        )

    def __repr__(self) -> str:
        name = "" if self.docid is None else f", docid={self.docid!r}"
        line = " ".join(self.text[: 4 * _SHOWN].split())
        line = line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
        if self.judged:
            return f"RankedDocument({self.rank}{name}, score={self.score:.3f}, {self.grade_name}: {line!r})"
        return f"RankedDocument({self.rank}{name}, not judged, {self.reason}: {line!r})"


class Ranking(list[RankedDocument]):
    """The documents of one query, best first: a list that also says what happened to the whole of it.

    Attributes:
        judged: how many documents of the list that was passed in were judged, whether they are returned or not.
        cut: how many documents stayed out because of a cut, `min_grade` or `min_probability`.
        warnings: what a caller should know before acting on this ranking, each a sentence.
    """

    def __init__(
        self,
        documents: Iterable[RankedDocument] = (),
        *,
        judged: int = 0,
        cut: int = 0,
        warnings: Iterable[str] = (),
    ) -> None:
        super().__init__(documents)
        self.judged = judged
        self.cut = cut
        self.warnings = tuple(warnings)


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a reranker says of n pairs, as arrays; `scores[key]` takes the pairs that a slice or index array names.

    A pair that was not judged has NaN in every array of floats and -1 as its grade.

    Attributes:
        logits: grade logits before calibration, shape (n, K), float32; their softmax is the uncalibrated distribution.
        probabilities: calibrated, shape (n, K), float64; rows sum to 1.
        score: expected gain, shape (n,); of pairs that left early see `darl_rerank.model.exits.lowered`.
        grade: the grade, shape (n,), int.
        novelty: percentile 0 to 100, shape (n,), or None where the checkpoint has no novelty statistics; NaN for a pair
            that left the model before the layers that they look at.
        features: novelty features, shape (n, F), or None if not asked for; NaN in parts that a pair left before.
        truncated: whether the document was cut, shape (n,), bool.
        query_truncated: whether the query was, shape (n,), bool; None where no query was.
        spans: where the best window is in the document's text, [start, end), shape (n, 2), int; None unless
            long_documents is "window".
        exit_layers: behind which layer a pair left the model early, 0 if it was run whole, shape (n,), int; None where
            the model has no exits or they are off.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    score: NDArray[np.float64]
    grade: NDArray[np.intp]
    novelty: NDArray[np.float64] | None
    features: NDArray[np.float32] | None
    truncated: NDArray[np.bool_]
    query_truncated: NDArray[np.bool_] | None = None
    spans: NDArray[np.intp] | None = None
    exit_layers: NDArray[np.intp] | None = None

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Whether the pair was judged, shape (n,)."""
        return ~np.isnan(self.score)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, key: slice | NDArray[np.intp]) -> PairScores:
        return self._each(lambda part: part[key])

    def spread(self, count: int, places: NDArray[np.intp]) -> PairScores:
        """These pairs as rows `places` of `count` pairs, of which the others were not judged."""

        def spread_out(part: NDArray[Any]) -> NDArray[Any]:
            fill = np.nan if part.dtype.kind == "f" else -1 if part.dtype.kind == "i" else False
            whole = np.full((count, *part.shape[1:]), fill, dtype=part.dtype)
            whole[places] = part
            return whole

        return self._each(spread_out)

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> PairScores:
        parts: dict[str, Any] = {}
        for name in self.__slots__:
            part = getattr(self, name)
            parts[name] = None if part is None else change(part)
        return PairScores(**parts)


def joined(parts: Sequence[PairScores]) -> PairScores:
    """The pairs of all parts, one part after the other; at least one."""
    whole: dict[str, Any] = {}
    for name in PairScores.__slots__:
        values = [getattr(part, name) for part in parts]
        whole[name] = None if any(value is None for value in values) else np.concatenate(values)
    return PairScores(**whole)
