"""One query group on its way through the queue: what is to be judged, what has been, and the answer."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..documents import QueryGroup
from ..judging import Judge
from ..model.prompt import PromptGroup
from ..ranking import rank
from ..results import PairScores, Ranking
from ..rules import Rules

BUDGET_USED = "time budget used up"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job.

    Attributes:
        ranking: its documents, but for those that `rules` keep out.
        tokens: how many were run.
        queue_s: seconds from arrival to the first step with it.
        inference_s: seconds from there to the last.
    """

    ranking: Ranking
    tokens: int
    queue_s: float
    inference_s: float


@dataclass(eq=False, slots=True)
class Job:
    """One query group in the queue. Make it with `make_job`.

    Attributes:
        group: query and documents, as they came.
        rules: what the caller wants of the ranking.
        prompts: token ids of the distinct texts to judge; equal texts are judged once, so that they get equal scores
            even where they would run in different steps.
        places: for each readable document of the group, which text it has.
        costs: tokens of each text.
        deadline: when it must be answered (`time.monotonic`).
        partial: whether the answer at the deadline is what was judged by then; otherwise it is an error.
        arrived: when it came.
        result: the answer; cancelling it takes the job out of the queue.
        started: when its first step began; None before.
        taken: how many texts have been given to steps so far.
        parts: scores of the texts judged so far.
        failed: texts that the engine could not judge, with the reason.
    """

    group: QueryGroup
    rules: Rules
    prompts: PromptGroup
    places: tuple[int, ...]
    costs: tuple[int, ...]
    deadline: float
    partial: bool
    arrived: float
    result: Future[Answer] = field(default_factory=Future)
    started: float | None = None
    taken: int = 0
    parts: list[PairScores] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the whole: the prefix once, and every text."""
        return len(self.prompts.prefix) + sum(self.costs)

    @property
    def left(self) -> int:
        """Texts that no step has been given."""
        return len(self.costs) - self.taken

    def take(self, tokens: float) -> PromptGroup | None:
        """The next texts, in the order of the input, that fit into so many tokens; None if the first doesn't."""
        start, used = self.taken, len(self.prompts.prefix)
        stop = start
        while stop < len(self.costs) and used + self.costs[stop] <= tokens:
            used += self.costs[stop]
            stop += 1
        if stop == start:
            return None
        self.taken = stop
        return part(self.prompts, start, stop)

    def answer(self, judge: Judge, now: float) -> Answer:
        """The ranking of what was judged so far; the rest stands behind it in the order of the input."""
        documents = self.group.documents
        reasons = {i: document.fault for i, document in enumerate(documents) if document.fault is not None}
        texts = len(self.costs)
        found = joined(self.parts) if self.parts else judge.judge([])
        done = len(found)
        rows, columns = [], []
        for place, text in zip(self.group.readable, self.places, strict=True):
            if text >= done:
                reasons[place] = BUDGET_USED
            elif text in self.failed:
                reasons[place] = self.failed[text]
            else:
                rows.append(place)
                columns.append(text)
        scores = found[np.array(columns, dtype=np.intp)].spread(len(documents), np.array(rows, dtype=np.intp))
        ranking = rank(self.group, scores, self.rules, reasons=reasons)
        started = now if self.started is None else self.started
        tokens = self.tokens if done == texts else len(self.prompts.prefix) * bool(done) + sum(self.costs[:done])
        return Answer(ranking, tokens, started - self.arrived, now - started)


def make_job(judge: Judge, group: QueryGroup, rules: Rules, *, seconds: float, partial: bool) -> Job:
    """A job for a query group, tokenised.

    Args:
        judge: what will judge it.
        group: query and documents.
        rules: see `Job`.
        seconds: from now to its deadline.
        partial: see `Job`.
    """
    now = time.monotonic()
    texts: dict[str, int] = {}
    places = tuple(texts.setdefault(group.documents[i].text, len(texts)) for i in group.readable)
    prompts = judge.encode(group.query, list(texts))
    costs = [0] * len(texts)
    for owner, suffix in zip(prompts.owners, prompts.suffixes, strict=True):
        costs[owner] += len(suffix)
    return Job(group, rules, prompts, places, tuple(costs), now + seconds, partial, now)


def part(prompts: PromptGroup, start: int, stop: int) -> PromptGroup:
    """The documents `start` to `stop` of a group, as a group."""
    # The sequences of a document stand together, in the order of the documents.
    first, last = bisect_left(prompts.owners, start), bisect_left(prompts.owners, stop)
    return replace(
        prompts,
        suffixes=prompts.suffixes[first:last],
        owners=tuple(owner - start for owner in prompts.owners[first:last]),
        truncated=prompts.truncated[start:stop],
        spans=prompts.spans[first:last],
    )


def joined(parts: Sequence[PairScores]) -> PairScores:
    """Scores of one group's parts as one."""
    columns = {name: [getattr(p, name) for p in parts] for name in PairScores.__slots__}
    whole: dict[str, Any] = {n: None if c[0] is None else np.concatenate(c) for n, c in columns.items()}
    return PairScores(**whole)
