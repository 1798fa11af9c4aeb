from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from darl_rerank.adapters.pyterrier import DarlTransformer

from darl_rerank import Reranker
from darl_rerank.results import RankedDocument
from darl_rerank.trec.corpora import Document


@pytest.fixture
def results(query: str, texts: list[str]) -> pd.DataFrame:
    rows = [{"qid": "1", "query": query, "docno": f"d{i}", "text": text} for i, text in enumerate(texts)]
    return pt.model.add_ranks(pd.DataFrame(rows).assign(score=[4.0, 3.0, 2.0, 1.0]))


def test_the_transformer_says_what_the_reranker_says(
    tiny_reranker: Reranker, results: pd.DataFrame, ranking: list[RankedDocument]
) -> None:
    found = DarlTransformer(tiny_reranker)(results)
    assert found["docno"].to_list() == [f"d{r.index}" for r in ranking]
    assert found["rank"].to_list() == [0, 1, 2, 3]
    for column in ("score", "grade", "grade_name", "judged"):
        assert found[column].to_list() == [getattr(r, column) for r in ranking], column
    assert [tuple(p) for p in found["probabilities"]] == [r.probabilities for r in ranking]
    assert "novelty" in found
    assert results["score"].to_list() == [4.0, 3.0, 2.0, 1.0]  # the caller's own is as it was
    # PyTerrier's own ranks of these scores are the same.
    assert pt.model.add_ranks(found.copy())["rank"].to_list() == [0, 1, 2, 3]


def test_in_an_experiment_beside_bm25(tiny_reranker: Reranker, tmp_path: Path) -> None:
    from darl_rerank.adapters.lucene import build_lucene_index, open_lucene_index

    from darl_rerank import icecat

    products = [product for product, _ in zip(icecat.read_products(), range(60), strict=False)]
    build_lucene_index(products, tmp_path / "lucene", progress=False)
    searcher = open_lucene_index(tmp_path / "lucene")
    texts = {product.docid: product.full_text for product in products}

    def search(asked: pd.DataFrame) -> pd.DataFrame:
        rows = []
        for one in asked.itertuples():
            hits = [(hit.docid, hit.score) for hit in searcher.search(one.query, k=10)]
            rows += [(one.qid, one.query, docno, score, texts[docno]) for docno, score in hits]
        return pt.model.add_ranks(pd.DataFrame(rows, columns=["qid", "query", "docno", "score", "text"]))

    bm25 = pt.apply.generic(search)
    darl = DarlTransformer(tiny_reranker)
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["toner cartridge", "black"]})
    first = bm25(topics)
    assert len(first) > 10
    qrels = first[["qid", "docno"]].assign(label=1)[::2]
    table = pt.Experiment(
        [bm25, bm25 >> darl, (bm25 % 3) >> darl],
        topics,
        qrels,
        [pt.measures.nDCG @ 10, pt.measures.P @ 3],
        names=list("abc"),
    )
    assert table["name"].to_list() == list("abc")
    assert table["nDCG@10"].between(0, 1).all()

    reranked = (bm25 >> darl)(topics)
    for qid, query in topics.itertuples(index=False):
        candidates: list[Document] = [p for d in first[first.qid == qid].docno for p in products if p.docid == d]
        best = tiny_reranker.rerank(query, [{"id": p.docid, "text": p.full_text} for p in candidates])
        assert reranked[reranked.qid == qid]["docno"].to_list() == [r.docid for r in best]


def test_a_document_that_cannot_be_judged_comes_last_with_a_number(
    tiny_reranker: Reranker, results: pd.DataFrame
) -> None:
    results.loc[0, "text"] = " "
    found = DarlTransformer(tiny_reranker)(results)
    assert found["docno"].to_list()[-1] == "d0"
    assert found["score"].to_list()[-1] == -1.0
    assert found["judged"].to_list() == [True, True, True, False]
    assert pt.model.add_ranks(found.copy())["rank"].to_list() == [0, 1, 2, 3]


def test_an_empty_result_and_a_missing_column(tiny_reranker: Reranker, results: pd.DataFrame) -> None:
    darl = DarlTransformer(tiny_reranker)
    assert {"score", "rank", "grade", "novelty"} <= set(darl(results[:0]).columns)
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        darl(results.drop(columns="text"))
    body = results.rename(columns={"text": "body"})
    assert DarlTransformer(tiny_reranker, text_field="body", top_k=1)(body)["rank"].to_list() == [0]
