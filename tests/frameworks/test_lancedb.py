from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from darl_rerank.adapters.lancedb import DarlReranker

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


@pytest.fixture
def table(tmp_path: Path, texts: list[str]) -> Any:
    vectors = np.random.default_rng(1).normal(size=(len(texts), 4)).astype(np.float32)
    rows = [{"id": i, "text": text, "vector": vector} for i, (text, vector) in enumerate(zip(texts, vectors))]  # noqa: B905
    table = lancedb.connect(tmp_path / "db").create_table("cats", rows)
    table.create_fts_index("text")
    return table


def said(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("_expected_gain", "_grade", "_grade_name", "_probabilities", "_novelty", "_judged")
    return [(row["id"], *(row[key] for key in keys)) for row in rows]


def expected(ranking: list[RankedDocument]) -> list[tuple[Any, ...]]:
    return [(r.index, r.score, r.grade, r.grade_name, list(r.probabilities), r.novelty, r.judged) for r in ranking]


def test_a_hybrid_search_says_what_the_reranker_says(
    table: Any, tiny_reranker: Reranker, query: str, ranking: list[RankedDocument]
) -> None:
    search = table.search(query_type="hybrid").vector([0.1, 0.2, 0.3, 0.4]).text(query).limit(4)
    rows = search.rerank(reranker=DarlReranker(tiny_reranker)).to_list()
    # The vector search finds all four; the same documents, so the same answer whatever their order was.
    assert [row["id"] for row in rows] == [r.index for r in ranking]
    for row, r in zip(said(rows), ranking, strict=True):
        assert row[1] == pytest.approx(r.score, abs=1e-6)
        assert (row[2], row[3]) == (r.grade, r.grade_name)
    assert [row["_relevance_score"] for row in rows] == pytest.approx([r.score / 3 for r in ranking], abs=1e-6)
    assert not {"_distance", "_score"} & rows[0].keys()


def test_a_vector_and_a_text_search(table: Any, tiny_reranker: Reranker, query: str, texts: list[str]) -> None:
    reranker = DarlReranker(tiny_reranker)
    plain = table.search([0.1, 0.2, 0.3, 0.4]).limit(3).to_list()
    rows = table.search([0.1, 0.2, 0.3, 0.4]).limit(3).rerank(reranker=reranker, query_string=query).to_list()
    best = tiny_reranker.rerank(query, [row["text"] for row in plain])
    assert said(rows) == [(plain[r.index]["id"], *e[1:]) for r, e in zip(best, expected(best), strict=True)]

    found = table.search(query, query_type="fts").limit(4).to_list()
    rows = table.search(query, query_type="fts").limit(4).rerank(reranker=reranker).to_list()
    best = tiny_reranker.rerank(query, [row["text"] for row in found])
    assert 0 < len(rows) < 4
    assert said(rows) == [(found[r.index]["id"], *e[1:]) for r, e in zip(best, expected(best), strict=True)]


def test_all_scores_can_be_kept(table: Any, tiny_reranker: Reranker, query: str) -> None:
    search = table.search(query_type="hybrid").vector([0.1, 0.2, 0.3, 0.4]).text(query).limit(4)
    rows = search.rerank(reranker=DarlReranker(tiny_reranker, return_score="all")).to_list()
    assert {"_distance", "_score", "_relevance_score", "_grade"} <= rows[0].keys()


def test_rows_that_cannot_be_judged_and_none_at_all(tiny_reranker: Reranker) -> None:
    rows = pa.table({"text": ["", "a cat"], "_distance": [0.1, 0.2]})
    found = DarlReranker(tiny_reranker).rerank_vector("cats", rows)
    assert found["text"].to_pylist() == ["a cat", ""]
    assert (found["_judged"].to_pylist(), found["_grade"].to_pylist()[1]) == ([True, False], None)
    assert found["_relevance_score"].to_pylist()[1] == 0.0
    empty = DarlReranker(tiny_reranker).rerank_vector("cats", rows[:0])
    assert (len(empty), empty.column_names) == (0, found.column_names)
    assert DarlReranker(tiny_reranker).rerank_vector("cats", found)["text"].to_pylist() == ["a cat", ""]
    with pytest.raises(InputError, match="no column 'body' in the results, which have text"):
        DarlReranker(tiny_reranker, column="body").rerank_vector("cats", rows)
