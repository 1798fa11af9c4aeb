"""FAISS results to documents, without FAISS and without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from darl_rerank.adapters.faiss import FaissReranker, FaissRetriever, candidates, rerank_faiss
from darl_rerank.adapters.faiss_index import encode
from numpy.typing import NDArray

from darl_rerank import Reranker
from darl_rerank.errors import InputError
from darl_rerank.results import RankedDocument

TEXTS = [f"text {number}" for number in range(5)]


class ByTextLength:
    """A reranker whose score is the length of the text."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def rerank_many(
        self, queries: Sequence[str], documents_per_query: Sequence[Sequence[Any]], *, top_k: int | None = None
    ) -> list[list[RankedDocument]]:
        self.queries += queries
        rankings = []
        for documents in documents_per_query:
            order = sorted(range(len(documents)), key=lambda i: -len(documents[i].text))[:top_k]
            rankings.append([
                RankedDocument(r, i, documents[i].docid, documents[i], len(documents[i].text), 0, "x", (1.0,))
                for r, i in enumerate(order, 1)
            ])  # fmt: skip
        return rankings


class Index:
    """Answers every search with the same ids."""

    d = 2

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.ntotal = len(ids)

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        assert vectors.dtype == np.float32
        ids = np.array([(self.ids + [-1] * k)[:k]] * len(vectors))
        return np.zeros(ids.shape, dtype=np.float32), ids


def encoder(texts: list[str]) -> NDArray[np.float16]:
    return np.ones((len(texts), 2), dtype=np.float16)


def test_missing_and_repeated_ids_are_left_out() -> None:
    found = candidates([[0.9, 0.8, 0.7, 0.6]], [[3, -1, 3, 0]], TEXTS)
    assert [(c.faiss_id, c.distance, c.docid, c.text) for c in found[0]] == [
        (3, 0.9, "3", "text 3"),
        (0, 0.6, "0", "text 0"),
    ]
    assert candidates([0.9, 0.8], [1, 2], TEXTS) == candidates([[0.9, 0.8]], [[1, 2]], TEXTS)


def test_documents_keep_their_own_ids() -> None:
    (found,) = candidates([[1.0]], [[7]], {7: {"id": "seven", "title": "T", "text": "x"}})
    assert (found[0].docid, found[0].text) == ("seven", "T\nx")
    assert found[0].document["id"] == "seven"


def test_a_query_that_finds_nothing_is_not_asked_about() -> None:
    reranker = ByTextLength()
    texts = ["a", "bbb", "cc"]
    rankings = rerank_faiss(reranker, ["q0", "q1"], [[1, 1, 1], [1, 1, 1]], [[-1, -1, -1], [0, 1, 2]], texts, top_k=2)
    assert [[r.document.text for r in ranking] for ranking in rankings] == [[], ["bbb", "cc"]]
    assert reranker.queries == ["q1"]


def test_search_judges_depth_and_returns_k() -> None:
    texts = ["a" * (i + 1) for i in range(10)]
    searcher = FaissReranker(Index(list(range(10))), texts, encoder, ByTextLength())
    assert [r.document.faiss_id for r in searcher.search("q", k=2, depth=4)[0]] == [3, 2]
    assert [r.document.faiss_id for r in searcher.search(["q", "p"], k=6, depth=4)[1]] == [5, 4, 3, 2, 1, 0]
    assert searcher.search([]) == []
    assert [c.docid for c in searcher.retriever.candidates(["q"], 3)[0]] == ["0", "1", "2"]
    assert searcher.retriever.candidates([], 3) == []


@pytest.mark.parametrize(
    ("distances", "ids", "documents", "message"),
    [
        ([[1.0]], [[1, 2]], TEXTS, r"one shape \(queries, depth\), got \(1, 1\) and \(1, 2\)"),
        ([[1, 2]], [[0.9, 0.8]], TEXTS, "ids must be integers, got float64; FAISS returns distances first"),
        ([[1.0]], [[5]], TEXTS, "id 5 of the index is not in the document store"),
        ([[1.0]], [[5]], {4: "x"}, "id 5 of the index is not in the document store"),
        ([[1.0]], [[0]], 3, "documents must be a list"),
    ],
)
def test_bad_results(distances: Any, ids: Any, documents: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        candidates(distances, ids, documents)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="got 2 queries but distances and ids for 1"):
        rerank_faiss(ByTextLength(), ["a", "b"], [[1.0]], [[0]], TEXTS)
    with pytest.raises(InputError, match="the index has no vectors"):
        FaissRetriever(Index([]), TEXTS, encoder)
    with pytest.raises(InputError, match=r"index must be a faiss\.Index, got str"):
        FaissRetriever("index.faiss", TEXTS, encoder)
    for wrong in ("minilm", 3):
        with pytest.raises(InputError, match="encoder must be a callable"):
            FaissRetriever(Index([0]), TEXTS, wrong)
    searcher = FaissReranker(Index([0]), TEXTS, lambda texts: np.ones((len(texts), 3)), ByTextLength())
    with pytest.raises(InputError, match="vectors have 3 dimensions, the index has 2"):
        searcher.search("q")
    for name in ("k", "depth"):
        with pytest.raises(InputError, match=rf"{name} must be at least 1, got 0"):
            searcher.search("q", **{name: 0})
    with pytest.raises(InputError, match="depth must be at least 1"):
        searcher.retriever.retrieve(["q"], 0)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones(2), r"shape \(2,\) for 2 texts, expected \(2, d\)"),
        (np.ones((3, 2)), r"shape \(3, 2\) for 2 texts"),
        (np.full((2, 2), np.nan), "NaN or infinity"),
        (np.full((2, 2), np.inf, dtype=np.float16), "NaN or infinity"),
    ],
)
def test_bad_vectors(vectors: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(lambda texts: vectors, ["a", "b"], "query")


def test_a_document_without_text_costs_only_itself(tiny_reranker: Reranker) -> None:
    store = ["a notebook", " ", {"id": "x", "text": None}]
    (ranking,) = rerank_faiss(tiny_reranker, ["laptop"], [[0.9, 0.8, 0.7]], [[1, 2, 0]], store)
    assert [(r.docid, r.judged) for r in ranking] == [("0", True), ("1", False), ("x", False)]
