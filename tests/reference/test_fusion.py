"""Reciprocal-rank fusion against Pyserini's own."""

from __future__ import annotations

import random

import pytest
from darl_rerank.adapters.jvm import ensure_jvm

from darl_rerank.trec.fusion import fuse_runs


@pytest.mark.parametrize("k", [1, 60])
def test_scores_are_those_of_pyserini(k: int) -> None:
    ensure_jvm()
    from pyserini.fusion import reciprocal_rank_fusion
    from pyserini.trectools import TrecRun

    generator = random.Random(k)
    runs = [
        {qid: generator.sample([f"d{n}" for n in range(40)], generator.randint(5, 30)) for qid in ("1", "2", "3")}
        for _ in range(3)
    ]
    theirs = reciprocal_rank_fusion(
        [
            TrecRun.from_list([
                (qid, "Q0", docid, rank, 100.0 - rank, "x")
                for qid, docids in run.items()
                for rank, docid in enumerate(docids, 1)
            ])
            for run in runs
        ],
        rrf_k=k,
    )  # fmt: skip
    expected = {
        (str(row.topic), row.docid): row.score for row in theirs.run_data[["topic", "docid", "score"]].itertuples()
    }
    found = {(qid, hit.docid): hit.score for qid, hits in fuse_runs(runs, k=k).items() for hit in hits}
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(found) > 60
