"""An offline job's memory does not grow with what it has judged."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from darl_rerank.offline import RerankJob, rerank_run
from darl_rerank.results import RankedDocument, Ranking


class Instant:
    """A reranker that judges at once."""

    fingerprint, batch_tokens = "instant", 1024

    def rerank_many(self, queries: Sequence[str], documents: Iterable[list[dict[str, Any]]], **_: Any) -> list[Ranking]:
        return [
            Ranking([
                RankedDocument(i + 1, i, d["id"], d, -float(i), 1, "related", (0.1, 0.2, 0.3, 0.4), 50.0)
                for i, d in enumerate(each)
            ])
            for each in documents
        ]  # fmt: skip


def test_results_are_not_held(tmp_path: Path) -> None:
    texts = [(f"d{i}", "a title") for i in range(200)]
    peaks = []
    for queries in (10, 50):
        job = RerankJob({f"q{i}": "query" for i in range(queries)}, {f"q{i}": texts for i in range(queries)})
        tracemalloc.start()
        rerank_run(Instant(), job, tmp_path / f"{queries}.trec", details=tmp_path / "details", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 8,000 pairs more; the digest of a job's texts takes some dozen bytes of each.
    assert peaks[1] - peaks[0] < 8000 * 200
