"""The queue before the model: bounded in tokens, shortest deadline first, one worker.

The worker runs the model in steps. A step takes documents from as many jobs as fit into its token budget, those with
the nearest deadline first, so batches are filled across requests and a short request doesn't wait for the end of a long
one. A pair's result depends on the pair alone, so it makes no difference to an answer what else was in its steps.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..judging import Judge
from ..model.prompt import PromptGroup
from ..model.scale import RelevanceScale
from ..pace import Prediction
from ..results import PairScores, joined
from .errors import QueueError
from .jobs import Answer, Job

_log = logging.getLogger("darl_rerank.queue")

# Micro-batches in a step. Fewer would run a query's prefix more often, more would let a short request wait longer.
_STEP_BATCHES = 4
# Micro-batches that the queue holds unless told otherwise: 13 s of work for two cores at 5,000 tokens a second.
QUEUE_BATCHES = 64
_LONGEST_RETRY = 60


class Observer(Protocol):
    """What is told of all that happens in a queue."""

    def waiting(self, *, jobs: int, tokens: int) -> None:
        """So many jobs of so many tokens are not answered yet."""

    def step(self, tokens: int, seconds: float, scores: Sequence[PairScores], scale: RelevanceScale) -> None:
        """A step of the model has ended; `scores` are those of each of its query groups."""

    def answered(self, answer: Answer, *, documents: int) -> None:
        """A job of so many documents is answered."""


class TokenQueue:
    """Jobs that wait, and the thread that works on them.

    Args:
        judge: what judges.
        max_tokens: how many tokens may wait, `math.inf` for no bound; `QUEUE_BATCHES` micro-batches if None. A job that
            is larger than that is taken if nothing else waits.
        observer: who is told; nobody if None.
    """

    def __init__(self, judge: Judge, *, max_tokens: float | None = None, observer: Observer | None = None) -> None:
        self.judge = judge
        self.max_tokens = max_tokens or QUEUE_BATCHES * judge.batch_tokens
        self._step_tokens = _STEP_BATCHES * judge.batch_tokens
        self._observer = observer
        self._changed = threading.Condition()
        # In order of deadline; a job stays until it is answered.
        self._jobs: list[Job] = []
        self._tokens = 0
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="darl-rerank worker", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    @property
    def tokens(self) -> int:
        """Tokens of all jobs that are not answered yet."""
        return self._tokens

    @property
    def waiting(self) -> int:
        """How many jobs are not answered yet."""
        return len(self._jobs)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of these jobs, or none; each answers by its `result`.

        Raises:
            QueueError: "queue_full", they don't fit into it; "closed".
        """
        tokens = sum(job.tokens for job in jobs)
        with self._changed:
            if self._closed:
                raise _closed()
            if self._jobs and self._tokens + tokens > self.max_tokens:
                raise self._full(tokens)
            for job in jobs:
                insort(self._jobs, job, key=lambda other: other.deadline)
            self._tokens += tokens
            self._measure()
            self._changed.notify()
        for job in jobs:
            # Answered, failed or cancelled by a client that hung up: either way it leaves.
            job.result.add_done_callback(lambda _, job=job: self._remove(job))  # type: ignore[misc]

    def close(self) -> None:
        """Take no more jobs; the worker ends when all are answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def abandon(self) -> None:
        """Close, and answer what is left with an error."""
        self.close()
        with self._changed:
            left = list(self._jobs)
        for job in left:
            self._fail(job, _closed())

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the worker to end; whether it has."""
        self._worker.join(timeout)
        return not self._worker.is_alive()

    def _full(self, tokens: int) -> QueueError:
        prediction = self.judge.pace.prediction()
        steps = self._tokens / self._step_tokens
        seconds = 1.0 if prediction is None else steps * prediction.cautious(self._step_tokens)
        message = f"the queue is full: {self._tokens} tokens wait, {tokens} more don't fit into {self.max_tokens}"
        return QueueError("queue_full", message, retry_after=min(_LONGEST_RETRY, 1 + int(seconds)))

    def _remove(self, job: Job) -> None:
        with self._changed:
            self._jobs.remove(job)
            self._tokens -= job.tokens
            self._measure()
            self._changed.notify()

    def _measure(self) -> None:
        if self._observer is not None:
            self._observer.waiting(jobs=len(self._jobs), tokens=self._tokens)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                jobs = list(self._jobs)
            try:
                self._step(jobs)
            except Exception as error:
                # Nothing may end this thread: nobody would be answered any more.
                _log.exception("a step failed")
                for job in jobs:
                    self._fail(job, _broken(error))

    def _step(self, jobs: Sequence[Job]) -> None:
        """Answer those of `jobs`, in order of deadline, that are done or too late, and run one step for the others."""
        now = time.monotonic()
        for job in jobs:
            if job.through or (job.partial and job.deadline <= now):
                self._finish(job)
            elif job.deadline <= now:
                self._fail(job, _late(job, now))
        chosen = self._choose([job for job in jobs if not job.result.done()], now)
        if not chosen:
            return
        for job, _ in chosen:
            job.started = job.started or now
        for (job, _), scores in zip(chosen, self._judge(chosen), strict=True):
            job.parts.append(scores)
        if self._observer is not None:
            tokens = sum(group.tokens for _, group in chosen)
            found = [job.parts[-1] for job, _ in chosen]
            self._observer.step(tokens, time.monotonic() - now, found, self.judge.checkpoint.scale)
        for job, _ in chosen:
            if job.through:
                self._finish(job)

    def _choose(self, jobs: Sequence[Job], now: float) -> list[tuple[Job, PromptGroup]]:
        """What the next step runs: documents of the jobs with the nearest deadlines."""
        chosen: list[tuple[Job, PromptGroup]] = []
        prediction = self.judge.pace.prediction()
        room: float = self._step_tokens
        used = 0
        for job in jobs:
            least = len(job.prompts.prefix) + job.costs[job.taken]
            if job.partial and prediction is not None:
                # The step must end by its deadline; where not even one document more fits, it is answered now.
                in_time = _tokens_within(job.deadline - now, prediction)
                if in_time < used + least:
                    self._finish(job)
                    continue
                room = min(room, in_time)
            group = job.take(room - used)
            if group is None:
                if chosen:
                    break
                # A document larger than a step is a step of its own.
                group = job.take(least)
                assert group is not None
            chosen.append((job, group))
            used += group.tokens
        return chosen

    def _judge(self, chosen: Sequence[tuple[Job, PromptGroup]]) -> list[PairScores]:
        """Scores of each group. What the engine can't judge costs only itself."""
        groups = [group for _, group in chosen]
        try:
            scores = self.judge.judge(groups)
        except Exception as error:
            _log.warning("a step of %d groups failed, it runs again document by document: %s", len(groups), error)
            return [self._judge_singly(job, group) for job, group in chosen]
        result, start = [], 0
        for group in groups:
            result.append(scores[start : start + len(group.truncated)])
            start += len(group.truncated)
        return result

    def _judge_singly(self, job: Job, group: PromptGroup) -> PairScores:
        count = len(group.truncated)
        parts, places = [self.judge.judge([])], []
        for i in range(count):
            try:
                parts.append(self.judge.judge([group.part(i, i + 1)]))
            except Exception as error:
                job.failed[job.taken - count + i] = f"the model could not judge it: {error}"
            else:
                places.append(i)
        if len(job.failed) == len(job.costs):
            self._fail(job, _broken(job.failed[0]))
        return joined(parts).spread(count, np.array(places, dtype=np.intp))

    def _finish(self, job: Job) -> None:
        try:
            answer = job.answer(self.judge, time.monotonic())
        except Exception as error:
            _log.exception("an answer could not be put together")
            self._fail(job, _broken(error))
            return
        if self._settle(job):
            if self._observer is not None:
                self._observer.answered(answer, documents=len(job.group.documents))
            job.result.set_result(answer)

    def _fail(self, job: Job, error: QueueError) -> None:
        if self._settle(job):
            job.result.set_exception(error)

    def _settle(self, job: Job) -> bool:
        """Whether the job still wants its result; only one caller is told so."""
        with self._changed:
            return not job.result.done() and not job.result.running() and job.result.set_running_or_notify_cancel()


def _closed() -> QueueError:
    return QueueError("closed", "the queue is closed", retry_after=5)


def _late(job: Job, now: float) -> QueueError:
    seconds = now - job.arrived
    return QueueError("timeout", f"not answered within {seconds:.1f} s: other calls were first", retry_after=5)


def _broken(why: object) -> QueueError:
    return QueueError("engine_failed", f"the model could not judge the documents: {why}")


def _tokens_within(seconds: float, prediction: Prediction) -> float:
    """How many tokens a step may have to end within so many seconds, cautiously predicted; below 0 for none."""
    left = seconds / prediction.caution - prediction.fixed
    return left / prediction.each if prediction.each else float("inf") if left > 0 else -1.0
