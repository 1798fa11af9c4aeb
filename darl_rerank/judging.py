"""Judging: query groups through prompt, engine and calibration, to scores. What `Reranker` orders by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engines.base import Engine, GradeOutput, grade_groups
from .model.checkpoint import Checkpoint
from .model.novelty import NoveltyModel
from .model.prompt import LongDocuments, PromptGroup
from .model.scoring import scored
from .pace import Pace
from .results import PairScores


class Judge:
    """A checkpoint with the engine that runs it; see `Reranker` for the arguments. Thread-safe.

    Attributes:
        pace: how long `judge` takes, learnt from its own runs.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        batch_tokens: int,
        share_prefix: bool,
        long_documents: LongDocuments,
    ) -> None:
        self.checkpoint = checkpoint
        self.engine = engine
        self.batch_tokens = batch_tokens
        self.share_prefix = share_prefix
        self.long_documents: LongDocuments = long_documents
        self.pace = Pace()
        self._encoder = checkpoint.encoder()

    def encode(self, query: str, texts: Sequence[str], *, strict: bool = False) -> PromptGroup:
        """Token ids of a query with texts to judge for it.

        Raises:
            InputError: (strict) the query is so long that no document fits beside it; it is cut otherwise.
        """
        return self._encoder.encode(query, texts, self.long_documents, cut_query=not strict)

    def judge(self, groups: Sequence[PromptGroup], *, features: bool = False) -> PairScores:
        """Scores of all documents of `groups`, one group after the other.

        Args:
            groups: from `encode`.
            features: also return the novelty features.

        Raises:
            InputError: the model gives logits that are not finite.
        """
        checkpoint = self.checkpoint
        started = time.perf_counter()
        output = grade_groups(
            self.engine,
            groups,
            grades=len(checkpoint.scale),
            features=features or checkpoint.novelty is not None,
            batch_tokens=self.batch_tokens,
            share_prefix=self.share_prefix,
        )
        novelty = None
        if checkpoint.novelty is not None:
            novelty = np.zeros(0) if output.features is None else _novelty(checkpoint.novelty, output)
        left = output.exit_layers
        probabilities, score = scored(checkpoint, output.logits, novelty, left)
        best = _best_windows(groups, score)
        spans = None
        if self.long_documents == "window":
            spans = np.array([span for group in groups for span in group.spans], dtype=np.intp).reshape(-1, 2)[best]
        result = PairScores(
            logits=output.logits[best],
            probabilities=probabilities[best],
            score=score[best],
            grade=checkpoint.grade_cuts.grades(score[best]),
            novelty=None if novelty is None else novelty[best],
            features=output.features[best] if features and output.features is not None else None,
            truncated=np.array([cut for group in groups for cut in group.truncated], dtype=bool),
            query_truncated=_of_each([group.query_truncated for group in groups], groups),
            spans=spans,
            exit_layers=None if left is None else left[best],
        )
        if groups:
            self.pace.observe(sum(group.distinct_tokens for group in groups), time.perf_counter() - started)
        return result


def _novelty(model: NoveltyModel, output: GradeOutput) -> NDArray[np.float64]:
    """Of each sequence; NaN for one that left early, before what novelty looks at was computed."""
    assert output.features is not None
    if output.exit_layers is None:
        return model.score(output.features)
    known = np.isfinite(output.features[:, model.weights > 0]).all(axis=1) | (output.exit_layers == 0)
    novelty = np.full(len(known), np.nan)
    novelty[known] = model.score(output.features[known])
    return novelty


def _of_each(values: Sequence[bool], groups: Sequence[PromptGroup]) -> NDArray[np.bool_] | None:
    """What holds of each group, for each of its documents; None if it holds of none."""
    return np.repeat(values, [len(group.truncated) for group in groups]) if any(values) else None


def _best_windows(groups: Sequence[PromptGroup], score: NDArray[Any]) -> NDArray[np.intp]:
    """For each document the index of its sequence with the highest score, the first of equals."""
    best: list[int] = []
    start = 0
    for group in groups:
        of_document: dict[int, int] = {}
        for i, owner in enumerate(group.owners, start):
            if owner not in of_document or score[i] > score[of_document[owner]]:
                of_document[owner] = i
        best.extend(of_document.values())
        start += len(group.owners)
    return np.array(best, dtype=np.intp)
