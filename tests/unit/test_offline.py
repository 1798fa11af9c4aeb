"""Offline jobs: queries are judged in blocks, and a job that goes on judges the same blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from darl_rerank.offline import RerankJob, rerank_run
from darl_rerank.results import RankedDocument, Ranking
from darl_rerank.trec.journal import Journal


class Recording:
    """A reranker whose score hangs on what else is in the call, as rounding does."""

    fingerprint = "recording"
    batch_tokens = 64 * 5

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def rerank_many(
        self, queries: Sequence[str], documents_per_query: Sequence[Sequence[Any]], **options: Any
    ) -> list[Ranking]:
        self.calls.append(list(queries))
        company = len("".join(queries))
        return [
            Ranking(
                RankedDocument(i + 1, i, d["id"], d, 1 / (1 + i) + 1e-3 * company, 0, "x", (1.0,))
                for i, d in enumerate(documents)
            )
            for documents in documents_per_query
        ]


def job() -> RerankJob:
    sizes = {"q1": 2, "q2": 4, "q3": 1, "q4": 0, "q5": 3, "q6": 7, "q7": 1}
    candidates = {qid: [(f"{qid}d{i}", "text") for i in range(size)] for qid, size in sizes.items()}
    return RerankJob({qid: f"query {qid}" for qid in sizes}, candidates)


BLOCKS = [["query q1", "query q2"], ["query q3", "query q4", "query q5", "query q6"], ["query q7"]]


def test_small_queries_fill_a_batch_together(tmp_path: Path) -> None:
    reranker = Recording()
    rerank_run(reranker, job(), tmp_path / "run", progress=False)
    assert reranker.calls == BLOCKS


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    rerank_run(Recording(), job(), tmp_path / "whole", progress=False)
    append, written = Journal.append, 0

    def killed(self: Journal, qid: str, result: Any) -> None:
        nonlocal written
        written += 1
        if written == stop:
            raise KeyboardInterrupt
        append(self, qid, result)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "append", killed)
        rerank_run(Recording(), job(), tmp_path / "run", progress=False)
    later = Recording()
    rerank_run(later, job(), tmp_path / "run", progress=False)
    assert (tmp_path / "run").read_bytes() == (tmp_path / "whole").read_bytes()
    # A block of which a part was written is judged whole again.
    left = [block for block in BLOCKS if any(int(query[-1]) >= stop for query in block)]
    assert later.calls == left
