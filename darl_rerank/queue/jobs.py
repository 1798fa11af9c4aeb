"""One query group on its way through the queue: what is to be judged, what has been, and the answer."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from ..documents import QueryGroup
from ..effort import Effort, expected_gains
from ..judging import Judge
from ..model.prompt import PromptGroup
from ..model.reach import STEP
from ..ranking import rank
from ..results import PairScores, Ranking, joined
from ..rules import Rules


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
        effort: how much of the list is to be judged.
        prompts: token ids of the distinct texts to judge; equal texts are judged once, so that they get equal scores
            even where they would run in different steps.
        places: which text each document has, by the document's place; those that are not to be judged are left out.
        costs: tokens of each text.
        deadline: when it must be answered (`time.monotonic`).
        arrived: when it came.
        top_k: how many documents its ranking keeps; all if None.
        result: the answer; cancelling it takes the job out of the queue.
        started: when its first step began; None before.
        taken: how many texts have been given to steps so far.
        parts: scores of the texts judged so far.
        failed: texts that the engine could not judge, with the reason.
    """

    group: QueryGroup
    rules: Rules
    effort: Effort
    prompts: PromptGroup
    places: dict[int, int]
    costs: tuple[int, ...]
    deadline: float
    arrived: float
    top_k: int | None = None
    result: Future[Answer] = field(default_factory=Future)
    started: float | None = None
    taken: int = 0
    parts: list[PairScores] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """Whether the answer at the deadline is what was judged by then; otherwise it is an error."""
        return self.effort.budget_ms is not None

    @property
    def tokens(self) -> int:
        """Tokens of the whole: the prefix once, and every text."""
        return len(self.prompts.prefix) + sum(self.costs)

    @property
    def through(self) -> bool:
        """Whether all is judged that is to be."""
        if self.taken == len(self.costs):
            return True
        reach = self.effort.reach
        if reach is None or not self.parts:
            return False
        scores = np.concatenate([expected_gains(part, self.rules.checkpoint.scale) for part in self.parts])
        return reach.probability(scores[~np.isnan(scores)], self.effort.top_k) <= reach.bound

    def take(self, tokens: float) -> PromptGroup | None:
        """The next texts, in the order of the input, that fit into so many tokens; None if the first doesn't."""
        start, used = self.taken, len(self.prompts.prefix)
        # Where every so many documents are a reason to stop, no more than these are run together.
        end = len(self.costs) if self.effort.reach is None else min(len(self.costs), start + STEP)
        stop = start
        while stop < end and used + self.costs[stop] <= tokens:
            used += self.costs[stop]
            stop += 1
        if stop == start:
            return None
        self.taken = stop
        return self.prompts.part(start, stop)

    def answer(self, judge: Judge, now: float) -> Answer:
        """The ranking of what was judged so far; the rest stands behind it in the order of the input."""
        found = joined(self.parts) if self.parts else judge.judge([])
        rows = {place: text for place, text in self.places.items() if text < len(found) and text not in self.failed}
        places, texts = (np.array(list(values), dtype=np.intp) for values in (rows.keys(), rows.values()))
        scores = found[texts].spread(len(self.group.documents), places)
        reasons = {i: self._reason(i) for i in range(len(self.group.documents)) if i not in rows}
        ranking = rank(self.group, scores, self.rules, reasons=reasons, top_k=self.top_k)
        started = now if self.started is None else self.started
        tokens = len(self.prompts.prefix) * bool(len(found)) + sum(self.costs[: len(found)])
        return Answer(ranking, tokens, started - self.arrived, now - started)

    def _reason(self, place: int) -> str:
        """Why a document was not judged."""
        fault = self.group.documents[place].fault
        if fault is not None:
            return fault
        if place not in self.places:
            return f"lies below depth {self.effort.depth}"
        if self.places[place] in self.failed:
            return self.failed[self.places[place]]
        if self.through:
            return f"depth='auto': so far down, a document hardly reaches the first {self.effort.top_k}"
        return f"the budget of {self.effort.budget_ms:g} ms was spent"


def make_job(
    judge: Judge,
    group: QueryGroup,
    rules: Rules,
    effort: Effort | None,
    *,
    arrived: float,
    timeout_s: float = math.inf,
    top_k: int | None = None,
    strict: bool = False,
) -> Job:
    """A job for a query group, tokenised.

    Args:
        judge: what will judge it.
        group: query and documents.
        rules: see `Job`.
        effort: see `Job`; None to judge all.
        arrived: when its request came (`time.monotonic`).
        timeout_s: seconds from then after which it is too late for an answer.
        top_k: see `Job`.
        strict: see `Judge.encode`.
    """
    effort = effort or Effort()
    seconds = timeout_s if effort.budget_ms is None else min(timeout_s, effort.budget_ms / 1000)
    texts: dict[str, int] = {}
    places = {
        place: texts.setdefault(group.documents[place].text, len(texts))
        for place in group.readable
        if not isinstance(effort.depth, int) or place < effort.depth
    }
    prompts = judge.encode(group.query, list(texts), strict=strict)
    costs = [0] * len(texts)
    for owner, suffix in zip(prompts.owners, prompts.suffixes, strict=True):
        costs[owner] += len(suffix)
    return Job(group, rules, effort, prompts, places, tuple(costs), arrived + seconds, arrived, top_k)
