from __future__ import annotations

from typing import Any

import pandas as pd
import polars as pl
import pytest
from darl_rerank.adapters.frames import rerank_frame

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument

COLUMNS = ["score", "rank", "grade", "grade_name", "probabilities", "novelty", "truncated", "judged", "reason"]


@pytest.fixture
def rows(query: str, texts: list[str]) -> dict[str, list[Any]]:
    """Two queries whose candidates stand among each other's, and a column of the caller's own."""
    return {
        "qid": ["q2", "q1"] * 4,
        "query": ["watering plants", query] * 4,
        "docno": [f"d{i}" for i in range(4) for _ in (0, 1)],
        "text": [text for text in texts for _ in (0, 1)],
        "price": list(range(8)),
    }


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_a_frame_says_what_the_reranker_says(
    kind: Any, rows: dict[str, list[Any]], tiny_reranker: Reranker, query: str, texts: list[str]
) -> None:
    frame = kind(rows)
    found = rerank_frame(tiny_reranker, frame)
    assert type(found) is kind
    assert list(found.columns) == [*rows, *COLUMNS]
    rankings = tiny_reranker.rerank_many(["watering plants", query], [texts, texts])
    every: list[RankedDocument] = [ranked for ranking in rankings for ranked in ranking]
    assert found["qid"].to_list() == ["q2"] * 4 + ["q1"] * 4
    assert found["docno"].to_list() == [f"d{r.index}" for r in every]
    assert found["price"].to_list() == [2 * r.index for r in rankings[0]] + [2 * r.index + 1 for r in rankings[1]]
    for column in ("score", "rank", "grade", "grade_name", "truncated", "judged"):
        assert found[column].to_list() == [getattr(r, column) for r in every], column
    assert [list(p) for p in found["probabilities"].to_list()] == [list(r.probabilities) for r in every]
    assert list(frame.columns) == list(rows)  # the caller's own is as it was
    assert rerank_frame(tiny_reranker, found, top_k=1)["rank"].to_list() == [1, 1]  # columns are replaced


def test_a_row_that_cannot_be_judged(rows: dict[str, list[Any]], tiny_reranker: Reranker) -> None:
    rows["text"][2] = None
    frame = rerank_frame(tiny_reranker, pl.DataFrame(rows))
    last = frame.filter(pl.col("qid") == "q2").row(-1, named=True)
    assert (last["docno"], last["score"], last["grade"], last["judged"]) == ("d1", None, None, False)
    assert last["reason"]
    found = rerank_frame(tiny_reranker, pd.DataFrame(rows))
    assert found["score"].isna().to_list() == frame["score"].is_null().to_list()
    assert found["grade"].dtype == "Int64"


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_an_empty_frame(kind: Any, rows: dict[str, list[Any]], tiny_reranker: Reranker) -> None:
    found = rerank_frame(tiny_reranker, kind(rows)[:0])
    assert list(found.columns) == [*rows, *COLUMNS]
    assert len(found) == 0


def test_other_columns_and_a_title(rows: dict[str, list[Any]], tiny_reranker: Reranker, query: str) -> None:
    rows = {"query_id": rows["qid"], "question": rows["query"], "headline": ["Cats"] * 8, "body": rows["text"]}
    found = rerank_frame(
        tiny_reranker, pd.DataFrame(rows), qid="query_id", query="question", text="body", title="headline", top_k=1
    )
    documents = [{"title": "Cats", "text": text} for text in rows["body"][::2]]
    assert found["score"].to_list()[1] == pytest.approx(tiny_reranker.rerank(query, documents)[0].score, abs=1e-6)


def test_what_is_refused(rows: dict[str, list[Any]], tiny_reranker: Reranker) -> None:
    with pytest.raises(InputError, match="expected a pandas or polars data frame, got list"):
        rerank_frame(tiny_reranker, [1])
    with pytest.raises(InputError, match="lacks the columns qid, text; it has query, docno, price"):
        rerank_frame(tiny_reranker, pd.DataFrame(rows).drop(columns=["qid", "text"]))
    rows["query"][3] = "other"
    with pytest.raises(InputError, match="row 3: query id 'q1' has two texts"):
        rerank_frame(tiny_reranker, pd.DataFrame(rows))


@pytest.mark.parametrize("nothing", [None, float("nan"), pd.NA])
def test_an_empty_cell_of_the_title_is_no_title(
    rows: dict[str, list[Any]], tiny_reranker: Reranker, nothing: Any
) -> None:
    frame = pd.DataFrame(rows).assign(title=["a title", *[nothing] * 7])
    titled = rerank_frame(tiny_reranker, frame, title="title").set_index(["qid", "docno"]).sort_index()
    plain = rerank_frame(tiny_reranker, pd.DataFrame(rows)).set_index(["qid", "docno"]).sort_index()
    assert titled["judged"].all()
    without = titled.index != ("q2", "d0")
    assert titled["score"][without].to_list() == pytest.approx(plain["score"][without].to_list(), abs=1e-5)
