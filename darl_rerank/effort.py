"""How much of a list is judged: down to a depth, within a time, or until the rest hardly matters."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .arguments import is_number, is_whole
from .documents import QueryGroup
from .errors import InputError
from .judging import Judge
from .model.prompt import PromptGroup
from .model.reach import STEP, Reach
from .model.scale import RelevanceScale
from .results import PairScores, joined

Depth = int | Literal["auto"]

# depth="auto" without top_k: the top that most measures and result pages have.
_DEFAULT_TOP = 10
# Documents that are tokenised at first, and then twice as many each time: a short budget ends among the first ones.
_FIRST_ENCODED = 2 * STEP


@dataclass(frozen=True, slots=True)
class Effort:
    """The arguments of `Reranker.rerank` that say how much of a list is judged, checked.

    Attributes:
        budget_ms: milliseconds for each query; no limit if None.
        depth: how many documents from the top of the list, "auto", or all if None.
        top_k: the top that depth="auto" looks at.
        reach: the checkpoint's statistics for depth="auto"; None otherwise.
    """

    budget_ms: float | None = None
    depth: Depth | None = None
    top_k: int = _DEFAULT_TOP
    reach: Reach | None = None

    @classmethod
    def read(
        cls, reach: Reach | None, *, budget_ms: float | None, depth: Depth | None, top_k: int | None
    ) -> Effort | None:
        """What the arguments ask for; None if all is to be judged.

        Raises:
            InputError: an argument that is not what it should be, or depth="auto" without the checkpoint's statistics.
        """
        if budget_ms is None and depth is None:
            return None
        if budget_ms is not None and not (is_number(budget_ms) and 0 < budget_ms < math.inf):
            raise InputError(f"budget_ms must be a number of milliseconds above 0, got {budget_ms!r}")
        if depth == "auto":
            if reach is None:
                raise InputError("depth='auto' needs statistics that this checkpoint lacks: give depth as a number")
        elif depth is not None and not (is_whole(depth) and depth >= 1):
            raise InputError(f"depth must be a number of at least 1 or 'auto', got {depth!r}")
        # Of numpy's numbers, Python's: what follows tells a depth from "auto" by its type.
        budget_ms = None if budget_ms is None else float(budget_ms)
        depth = depth if depth is None or isinstance(depth, str) else int(depth)
        return cls(budget_ms, depth, top_k or _DEFAULT_TOP, reach if depth == "auto" else None)


def judge_from_the_top(
    judge: Judge, group: QueryGroup, effort: Effort, *, started: float, strict: bool = False
) -> tuple[PairScores, dict[int, str]]:
    """Judge a list from its top until `effort` is spent.

    Documents are judged in batches. Before each, its time is predicted from what the engine was seen to take, and it
    is run if it should end in time; a batch that takes longer than predicted is the only way to be late.

    Args:
        judge: what judges.
        group: the query and its documents, the first stage's best first.
        effort: when to stop.
        started: `time.perf_counter()` when the query's time began to run.
        strict: see `Judge.encode`.

    Returns:
        one row a document, and the reasons why documents were not judged, by their places.

    Raises:
        InputError: a budget below what the engine takes for one document.
    """
    readable = group.readable
    reason = ""
    if isinstance(effort.depth, int):
        readable = [place for place in readable if place < effort.depth]
        reason = f"lies below depth {effort.depth}"
    deadline = math.inf if effort.budget_ms is None else started + effort.budget_ms / 1000
    waiting = _Waiting(judge, group, readable, strict=strict)
    parts: list[PairScores] = []
    scores = np.zeros(0)
    while len(scores) < len(readable):
        # A step may take several batches.
        step = STEP - len(scores) % STEP
        if effort.reach is not None and step == STEP and _is_enough(effort.reach, scores, effort.top_k):
            reason = (
                f"depth='auto': so far down, a document reaches the first {effort.top_k} with a probability of at most "
                f"{effort.reach.bound:g}"
            )
            break
        batch = waiting.next(deadline - time.perf_counter(), most=None if effort.reach is None else step)
        if batch is None:
            if not parts:
                _check_budget(judge, waiting, effort)
            reason = f"the budget of {effort.budget_ms:g} ms was spent"
            break
        parts.append(judge.judge([batch]))
        scores = np.concatenate([scores, expected_gains(parts[-1], judge.checkpoint.scale)])
    places = np.array(readable[: len(scores)], dtype=np.intp)
    found = joined(parts) if parts else judge.judge([])
    judged = set(readable[: len(scores)])
    reasons = {i: document.fault or reason for i, document in enumerate(group.documents) if i not in judged}
    return found.spread(len(group.documents), places), reasons


def expected_gains(scores: PairScores, scale: RelevanceScale) -> NDArray[np.float64]:
    """The scores, those of pairs that left early before they were lowered: what the reach was fitted for."""
    return scores.score if scores.exit_layers is None else scale.expected_gain(scores.probabilities)


def _is_enough(reach: Reach, scores: NDArray[np.float64], top_k: int) -> bool:
    return len(scores) > 0 and reach.probability(scores, top_k) <= reach.bound


def _check_budget(judge: Judge, waiting: _Waiting, effort: Effort) -> None:
    """Raise InputError if no machine load explains that the budget was too short for a single document."""
    prediction = judge.pace.prediction()
    if prediction is None or effort.budget_ms is None:
        return
    milliseconds = prediction.least(waiting.first_tokens) * 1000
    if milliseconds > effort.budget_ms:
        raise InputError(
            f"budget_ms is {effort.budget_ms:g}, but judging one document takes at least {milliseconds:.1f} ms here"
        )


class _Waiting:
    """The documents of a list that are still to be judged, tokenised a part at a time."""

    def __init__(self, judge: Judge, group: QueryGroup, places: list[int], *, strict: bool) -> None:
        self._judge = judge
        self._group = group
        self._places = places
        self._strict = strict
        self._encoded = 0
        self._chunk = PromptGroup((), (), (), ())
        self._taken = 0

    @property
    def first_tokens(self) -> int:
        """Tokens of the first document that is waiting, with the query."""
        return self._chunk.part(self._taken, self._taken + 1).tokens

    def next(self, seconds: float, most: int | None) -> PromptGroup | None:
        """As many of the next documents, at most `most`, as end in time and fill one batch; None if none does."""
        if self._taken == len(self._chunk.truncated):
            self._encode_more()
        sizes = [0] * len(self._chunk.truncated)
        for owner, suffix in zip(self._chunk.owners, self._chunk.suffixes, strict=True):
            sizes[owner] += len(suffix)
        prediction = self._judge.pace.prediction()
        tokens, stop = len(self._chunk.prefix), self._taken
        for size in sizes[self._taken :][:most]:
            tokens += size
            full = stop > self._taken and tokens > self._judge.batch_tokens
            if prediction is not None:
                late = prediction.cautious(tokens) > seconds
            else:
                # Where nothing was measured yet, one document is judged to measure it.
                late = seconds <= 0 or (seconds < math.inf and stop > self._taken)
            if full or late:
                break
            stop += 1
        if stop == self._taken:
            return None
        start, self._taken = self._taken, stop
        return self._chunk.part(start, stop)

    def _encode_more(self) -> None:
        places = self._places[self._encoded :][: max(_FIRST_ENCODED, self._encoded)]
        texts = [self._group.documents[i].text for i in places]
        self._chunk = self._judge.encode(self._group.query, texts, strict=self._strict)
        self._encoded, self._taken = self._encoded + len(places), 0
