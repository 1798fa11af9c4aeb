"""A query with documents, and what the reranker itself says of them: the answer that every framework has to give."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

# Before anything imports the libraries that read them.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["LANGSMITH_TRACING"] = "false"

import pytest

from darl_rerank import Reranker
from darl_rerank.judging import Judge
from darl_rerank.results import RankedDocument

QUERY = "how long do cats live"
TEXTS = [
    "Cats are small carnivores that people keep as pets.",
    "Most houseplants need water once a week.",
    "Indoor cats live for 12 to 18 years on average, and some reach 20.",
    "The oldest known cat lived for 38 years.",
]


@pytest.fixture
def query() -> str:
    return QUERY


@pytest.fixture
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def ranking(tiny_reranker: Reranker) -> list[RankedDocument]:
    """What `Reranker.rerank` says of query and texts."""
    return tiny_reranker.rerank(QUERY, TEXTS)


@pytest.fixture
def off_the_loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Await a call and check that the model ran in another thread while the event loop went on."""
    judged_in: list[int] = []
    judge = Judge.judge

    def slow(*args: Any, **options: Any) -> Any:
        judged_in.append(threading.get_ident())
        time.sleep(0.1)
        return judge(*args, **options)

    monkeypatch.setattr(Judge, "judge", slow)

    def run(call: Callable[[], Awaitable[Any]]) -> Any:
        async def both() -> tuple[Any, int]:
            task = asyncio.ensure_future(call())
            turns = 0
            while not task.done():
                turns += 1
                await asyncio.sleep(0.005)
            return await task, turns

        result, turns = asyncio.run(both())
        assert judged_in
        assert threading.get_ident() not in judged_in
        assert turns > 2
        return result

    return run


@pytest.fixture
def together(
    monkeypatch: pytest.MonkeyPatch, tiny_reranker: Reranker
) -> Callable[[Callable[[], Awaitable[Any]]], list[Any]]:
    """Await six calls at once and check that they were judged in fewer steps than there are calls."""
    all_wait = threading.Event()
    steps: list[int] = []
    judge = Judge.judge

    def held(self: Judge, groups: Any, **options: Any) -> Any:
        assert all_wait.wait(20)
        steps.append(len(groups))
        return judge(self, groups, **options)

    monkeypatch.setattr(Judge, "judge", held)

    def run(call: Callable[[], Awaitable[Any]], count: int = 6) -> list[Any]:
        async def all_calls() -> list[Any]:
            tasks = [asyncio.ensure_future(call()) for _ in range(count)]
            while (queue := tiny_reranker._queue) is None or queue.waiting < count:
                await asyncio.sleep(0.005)
            all_wait.set()
            return await asyncio.gather(*tasks)

        found = asyncio.run(all_calls())
        assert len(steps) < count
        assert max(steps) > 1
        return found

    return run
