"""From scores to a ranking: order, what each document is told with, and which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .documents import QueryGroup
from .model.scale import RelevanceScale
from .results import PairScores, RankedDocument, Ranking
from .rules import Rules


def rank(
    group: QueryGroup,
    scores: PairScores,
    rules: Rules,
    *,
    reasons: Mapping[int, str],
    top_k: int | None = None,
) -> Ranking:
    """The documents of a query group, best first; those that were not judged come last, in the input's order.

    Args:
        group: the query and its documents.
        scores: one row a document.
        rules: what decides the order and which documents stay out.
        reasons: why a document was not judged, by its place.
        top_k: how many to keep; all if None.
    """
    scores = rules.shifted(scores)
    order, fused = rules.order(group, scores)
    kept = rules.kept(scores)
    scale = rules.checkpoint.scale
    ranked = (
        _ranked(place, int(i), group, scores, scale, reasons.get(int(i)))
        for place, i in enumerate(order[kept[order]][:top_k], 1)
    )
    if fused is not None:
        ranked = (replace(one, fused=float(fused[one.index]) if one.judged else None) for one in ranked)
    judged, cut = int(scores.judged.sum()), int((~kept).sum())
    return Ranking(ranked, judged=judged, cut=cut, warnings=rules.warnings(scores))


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
        novelty=None if scores.novelty is None or np.isnan(scores.novelty[index]) else float(scores.novelty[index]),
        truncated=bool(scores.truncated[index]),
        query_truncated=scores.query_truncated is not None and bool(scores.query_truncated[index]),
        exit_layer=None if scores.exit_layers is None else int(scores.exit_layers[index]) or None,
        span=None if scores.spans is None else (start, end),
        text=document.text,
    )
