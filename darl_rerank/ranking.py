"""From scores to a ranking: order, what each document is told with, and how many are kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .documents import QueryGroup
from .model.scale import RelevanceScale
from .results import PairScores, RankedDocument, Ranking


def rank(
    group: QueryGroup,
    scores: PairScores,
    scale: RelevanceScale,
    *,
    reasons: Mapping[int, str],
    top_k: int | None = None,
) -> Ranking:
    """The documents of a query group in order of score; those that were not judged come last, in the input's order.

    Args:
        group: the query and its documents.
        scores: one row a document.
        scale: names the grades.
        reasons: why a document was not judged, by its place.
        top_k: how many to keep; all if None.
    """
    # NaN, the score of a document that was not judged, sorts behind every number.
    order = np.argsort(-scores.score, kind="stable")[:top_k]
    return Ranking(
        _ranked(place, int(i), group, scores, scale, reasons.get(int(i))) for place, i in enumerate(order, 1)
    )


def _ranked(
    place: int, index: int, group: QueryGroup, scores: PairScores, scale: RelevanceScale, reason: str | None
) -> RankedDocument:
    document = group.documents[index]
    if np.isnan(scores.score[index]):
        return RankedDocument(
            rank=place,
            index=index,
            docid=document.docid,
            document=document.document,
            score=None,
            grade=None,
            grade_name=None,
            probabilities=(),
            judged=False,
            reason=reason,
            text=document.text,
        )
    grade = int(scores.grade[index])
    start, end = (0, 0) if scores.spans is None else map(int, scores.spans[index])
    return RankedDocument(
        rank=place,
        index=index,
        docid=document.docid,
        document=document.document,
        score=float(scores.score[index]),
        grade=grade,
        grade_name=scale.grades[grade].name,
        probabilities=tuple(map(float, scores.probabilities[index])),
        novelty=None if scores.novelty is None else float(scores.novelty[index]),
        truncated=bool(scores.truncated[index]),
        query_truncated=scores.query_truncated is not None and bool(scores.query_truncated[index]),
        span=None if scores.spans is None else (start, end),
        text=document.text,
    )
