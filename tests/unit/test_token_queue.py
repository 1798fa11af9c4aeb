"""The queue of the server and of asynchronous calls: bounded, fair by deadline, and without influence on any answer."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank import Checkpoint, Reranker
from darl_rerank.documents import read_group
from darl_rerank.effort import Effort, judge_from_the_top
from darl_rerank.engines.base import GradeOutput
from darl_rerank.engines.batching import MicroBatch
from darl_rerank.errors import InputError
from darl_rerank.model.reach import Reach
from darl_rerank.options import RerankOptions
from darl_rerank.queue.errors import QueueError
from darl_rerank.queue.jobs import Job, make_job
from darl_rerank.queue.token_queue import TokenQueue
from darl_rerank.results import Ranking
from darl_rerank.rules import Rules
from darl_rerank.serving.errors import of_queue
from darl_rerank.serving.metrics import Metrics

WORDS = ["red", "green", "blue", "small", "large", "cheap", "fast", "quiet", "heavy", "light"]
DOCUMENTS = [f"{a} {b} notebook" for a in WORDS for b in WORDS]


class ScriptedEngine:
    """Grades by a sum of token ids; may be held before each micro-batch, and refuses what it is told to refuse."""

    name, device, precision, batch_tokens = "scripted", "cpu", "float32", 128
    exits = None

    def __init__(self) -> None:
        self.batches: list[MicroBatch] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.refused: tuple[int, ...] | None = None

    def encode_prefix(self, prefix: tuple[int, ...]) -> Any:
        return prefix

    def grade(self, batch: MicroBatch, prefix: Any | None, *, features: bool) -> GradeOutput:
        self.at_gate.set()
        assert self.gate.wait(10)
        if self.refused == () or any(self.refused == s[-len(self.refused or ()) :] for s in batch.sequences):
            raise RuntimeError("out of memory")
        self.batches.append(batch)
        whole = [(*(prefix or ()), *sequence) for sequence in batch.sequences]
        return GradeOutput(np.array([[sum(s) % (7 + k) for k in range(4)] for s in whole], dtype=np.float32), None)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def reranker(engine: ScriptedEngine, tiny_model: Path) -> Reranker:
    return Reranker(Checkpoint.load(tiny_model), engine)


@pytest.fixture
def queue(engine: ScriptedEngine, reranker: Reranker) -> Iterator[TokenQueue]:
    queue = TokenQueue(reranker.judge, max_tokens=5000, observer=Metrics())
    queue.start()
    yield queue
    engine.gate.set()
    queue.abandon()
    assert queue.join(10)
    assert (queue.tokens, queue.waiting) == (0, 0)


def job(
    reranker: Reranker,
    query: str,
    documents: list[Any],
    *,
    seconds: float = 60.0,
    partial: bool = False,
    effort: Effort | None = None,
) -> Job:
    if partial:
        effort = Effort(budget_ms=seconds * 1000)
    group, rules = read_group(query, documents), Rules(reranker.checkpoint)
    return make_job(reranker.judge, group, rules, effort, arrived=time.monotonic(), timeout_s=seconds)


def hold(engine: ScriptedEngine, queue: TokenQueue, reranker: Reranker) -> Job:
    """A job that the worker is held in the first step of."""
    engine.at_gate.clear()
    engine.gate.clear()
    first = job(reranker, "first", ["a"])
    queue.submit([first])
    assert engine.at_gate.wait(10)
    return first


def test_an_answer_is_that_of_the_library_whatever_else_is_in_the_queue(queue: TokenQueue, reranker: Reranker) -> None:
    asked = [(f"query {i}", DOCUMENTS[i : i + 1 + 7 * i]) for i in range(6)]
    jobs = [job(reranker, *group) for group in asked]
    for each in jobs:
        queue.submit([each])
    for (query, documents), each in zip(asked, jobs, strict=True):
        assert each.result.result(10).ranking == reranker.rerank(query, documents)


def test_steps_take_documents_of_several_requests(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    hold(engine, queue, reranker)
    jobs = [job(reranker, f"q{i}", ["notebook"]) for i in range(3)]
    queue.submit(jobs)
    engine.gate.set()
    for each in jobs:
        each.result.result(10)
    assert max(len(batch.sequences) for batch in engine.batches) > 1


def test_the_nearest_deadline_comes_first_even_after_a_request_has_begun(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    hold(engine, queue, reranker)
    long, short = job(reranker, "long", DOCUMENTS), job(reranker, "short", ["a", "b"], seconds=30)
    queue.submit([long])
    queue.submit([short])
    ended: list[str] = []
    long.result.add_done_callback(lambda _: ended.append("long"))
    short.result.add_done_callback(lambda _: ended.append("short"))
    engine.gate.set()
    long.result.result(10)
    assert ended == ["short", "long"]
    # A hundred documents take several steps.
    assert len(long.parts) > 1


def test_a_full_queue_refuses_and_says_when_to_come_again(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    # So that the pace is known, from which the time to come again is read.
    reranker.rerank("warm up", DOCUMENTS)
    hold(engine, queue, reranker)
    large = job(reranker, "large", DOCUMENTS)
    queue.submit([large])
    with pytest.raises(QueueError, match=r"the queue is full: \d+ tokens wait") as raised:
        for _ in range(10):
            queue.submit([job(reranker, "more", DOCUMENTS)])
    assert of_queue(raised.value).status == 429
    assert (raised.value.retry_after or 0) >= 1
    assert queue.tokens <= queue.max_tokens


def test_a_request_larger_than_the_queue_is_taken_alone(reranker: Reranker) -> None:
    queue = TokenQueue(reranker.judge, max_tokens=10, observer=Metrics())
    queue.start()
    large = job(reranker, "large", DOCUMENTS)
    queue.submit([large])
    assert len(large.result.result(10).ranking) == len(DOCUMENTS)
    queue.close()
    assert queue.join(10)


def test_a_cancelled_request_frees_its_tokens_and_runs_no_further(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    first = hold(engine, queue, reranker)
    large = job(reranker, "large", DOCUMENTS)
    queue.submit([large])
    assert large.result.cancel()
    assert queue.tokens == first.tokens
    engine.gate.set()
    first.result.result(10)
    assert sum(len(batch.sequences) for batch in engine.batches) == 1


def test_too_late_is_an_error_or_what_was_judged_by_then(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    reranker.rerank("warm up", DOCUMENTS)
    hold(engine, queue, reranker)
    late = job(reranker, "late", ["a"], seconds=0)
    partial = job(reranker, "partial", ["a", "", "b"], seconds=0, partial=True)
    queue.submit([late, partial])
    engine.gate.set()
    with pytest.raises(QueueError, match="not answered within") as raised:
        late.result.result(10)
    assert (raised.value.code, of_queue(raised.value).status) == ("timeout", 429)
    ranking = partial.result.result(10).ranking
    spent = "the budget of 0 ms was spent"
    assert [(r.index, r.judged, r.reason) for r in ranking] == [
        (0, False, spent), (1, False, "is empty"), (2, False, spent)
    ]  # fmt: skip


def test_a_budget_judges_from_the_top_of_the_list(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    whole = reranker.rerank("laptop", DOCUMENTS)
    each = job(reranker, "laptop", DOCUMENTS, partial=True)
    # As if so much fitted into the time that is left, and then none was left.
    steps = iter([each.take(200), each.take(100)])
    each.parts.extend(reranker.judge.judge([group]) for group in steps if group is not None)
    ranking = each.answer(reranker.judge, each.arrived).ranking
    judged = [r.index for r in ranking if r.judged]
    assert 0 < len(judged) == each.taken < len(DOCUMENTS)
    assert judged == [r.index for r in whole if r.index < each.taken]
    assert [r.index for r in ranking[each.taken :]] == list(range(each.taken, len(DOCUMENTS)))


def test_what_lies_below_the_depth_is_not_judged(queue: TokenQueue, reranker: Reranker) -> None:
    each = job(reranker, "laptop", ["", *DOCUMENTS], effort=Effort(depth=8))
    queue.submit([each])
    expected = reranker.rerank("laptop", ["", *DOCUMENTS], depth=8)
    assert each.result.result(10).ranking == expected
    assert expected.judged == 7


@pytest.mark.parametrize("bound", [1e-9, 0.5, 1 - 1e-9])
def test_an_automatic_depth_stops_where_the_library_does(
    engine: ScriptedEngine, tiny_model: Path, bound: float
) -> None:
    reranker = Reranker(Checkpoint.load(tiny_model), engine, batch_tokens=4096)
    queue = TokenQueue(reranker.judge, observer=Metrics())
    queue.start()
    reach = Reach(intercept=0.0, slope=1.0, bound=bound)
    documents = DOCUMENTS[:60]
    each = job(reranker, "laptop", documents, effort=Effort(depth="auto", top_k=3, reach=reach))
    queue.submit([each])
    found = each.result.result(10).ranking
    queue.close()
    group = read_group("laptop", documents)
    scores, _ = judge_from_the_top(reranker.judge, group, each.effort, started=0.0)
    assert sorted(r.index for r in found if r.judged) == np.flatnonzero(scores.judged).tolist()
    assert found.judged == {1e-9: 60, 0.5: 60, 1 - 1e-9: 10}[bound]


def test_what_the_engine_fails_on_costs_only_itself(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    bad = job(reranker, "q", ["bad document"])
    engine.refused = bad.prompts.suffixes[0]
    jobs = [job(reranker, "q", ["one", "bad document", "two"]), job(reranker, "other", ["one", "two"])]
    queue.submit(jobs)
    mixed, good = (each.result.result(10).ranking for each in jobs)
    assert [r.judged for r in good] == [True, True]
    assert [r.judged for r in mixed] == [True, True, False]
    assert mixed[2].index == 1
    assert "out of memory" in (mixed[2].reason or "")


def test_an_engine_that_fails_on_everything_is_an_error_and_the_worker_lives(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    engine.refused = ()
    broken = job(reranker, "q", ["one", "two"])
    queue.submit([broken])
    with pytest.raises(QueueError, match="out of memory") as raised:
        broken.result.result(10)
    assert (of_queue(raised.value).status, raised.value.code) == (503, "engine_failed")
    engine.refused = None
    again = job(reranker, "q", ["one"])
    queue.submit([again])
    assert again.result.result(10).ranking[0].judged


def test_a_closed_queue_answers_what_it_has_and_takes_no_more(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    first = hold(engine, queue, reranker)
    queue.close()
    with pytest.raises(QueueError) as raised:
        queue.submit([job(reranker, "q", ["one"])])
    assert (raised.value.code, of_queue(raised.value).code) == ("closed", "draining")
    engine.gate.set()
    assert first.result.result(10).ranking[0].judged
    assert queue.join(10)


def test_an_abandoned_queue_answers_with_an_error(
    queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker
) -> None:
    first = hold(engine, queue, reranker)
    queue.abandon()
    with pytest.raises(QueueError, match="the queue is closed"):
        first.result.result(10)


def test_equal_documents_are_judged_once(queue: TokenQueue, engine: ScriptedEngine, reranker: Reranker) -> None:
    each = job(reranker, "q", ["same", "other", " same ", "same"])
    queue.submit([each])
    ranking = each.result.result(10).ranking
    assert len({r.score for r in ranking if r.text == "same"}) == 1
    assert sum(len(batch.sequences) for batch in engine.batches) == 2


def test_nothing_to_judge_is_an_answer(queue: TokenQueue, reranker: Reranker) -> None:
    each = job(reranker, "q", ["", {"title": ""}])
    queue.submit([each])
    assert [r.judged for r in each.result.result(10).ranking] == [False, False]


def test_steps_give_what_the_whole_gives_window_by_window(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(
        tiny_model, engine="torch", device="cpu", precision="float32", long_documents="window", batch_tokens=256
    )
    documents = [" ".join(DOCUMENTS[i : i + 40 * i]) for i in range(1, 5)]
    each = job(reranker, "laptop", documents)
    queue = TokenQueue(reranker.judge, observer=Metrics())
    queue.start()
    queue.submit([each])
    served, alone = each.result.result(60).ranking, reranker.rerank("laptop", documents)
    queue.close()
    assert len(each.parts) > 1
    assert [(r.index, r.span) for r in served] == [(r.index, r.span) for r in alone]
    np.testing.assert_allclose([r.score for r in served], [r.score for r in alone], atol=1e-4)


def test_asynchronous_calls_give_the_library_s_rankings_and_share_batches(
    engine: ScriptedEngine, tiny_model: Path
) -> None:
    reranker = Reranker(Checkpoint.load(tiny_model), engine, batch_tokens=4096)
    asked = [(f"query {i}", ["", *DOCUMENTS[i : i + 1 + i % 3]]) for i in range(8)]
    expected = [reranker.rerank(*group, top_k=2) for group in asked]
    assert len(engine.batches) == len(asked)
    engine.batches.clear()
    engine.gate.clear()

    async def all_at_once() -> list[Ranking]:
        calls = [asyncio.ensure_future(reranker.rerank_async(*group, top_k=2)) for group in asked]
        # The worker is held in its first step until all calls wait.
        while (queue := reranker._queue) is None or queue.waiting < len(asked):
            await asyncio.sleep(0.001)
        engine.gate.set()
        return await asyncio.gather(*calls)

    assert asyncio.run(all_at_once()) == expected
    assert len(engine.batches) < len(asked) / 2


def test_an_asynchronous_call_has_the_arguments_and_the_errors_of_the_synchronous_one(reranker: Reranker) -> None:
    own = [each for each in inspect.signature(Reranker.rerank).parameters.values() if each.kind is each.KEYWORD_ONLY]
    assert {each.name for each in own} == RerankOptions.__annotations__.keys()
    call = reranker.rerank_async
    for refused, why in (
        (call("", ["a"]), "query"), (call("q", "a"), "documents"), (call("q", ["a"], top_k=0), "top_k"),
        (call("q", ["a", ""], strict=True), "empty"), (call("q", ["a"], cut="recall 2 of x"), "no grade"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            asyncio.run(refused)
    depth = asyncio.run(call("laptop", DOCUMENTS, depth=8))
    assert depth == reranker.rerank("laptop", DOCUMENTS, depth=8)


def test_a_cancelled_call_leaves_the_queue(engine: ScriptedEngine, reranker: Reranker) -> None:
    engine.gate.clear()

    async def cancelled() -> int:
        held = asyncio.ensure_future(reranker.rerank_async("first", ["a"]))
        await asyncio.to_thread(engine.at_gate.wait, 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reranker.rerank_async("second", DOCUMENTS), 0.2)
        assert reranker._queue is not None
        waiting = reranker._queue.waiting
        engine.gate.set()
        await held
        return waiting

    assert asyncio.run(cancelled()) == 1


def test_the_queue_of_asynchronous_calls_ends_with_its_reranker(engine: ScriptedEngine, tiny_model: Path) -> None:
    reranker = Reranker(Checkpoint.load(tiny_model), engine)
    asyncio.run(reranker.rerank_async("q", ["one"]))
    queue = reranker._queue
    assert queue is not None
    del reranker
    gc.collect()
    assert queue.join(10)
