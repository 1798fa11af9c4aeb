from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from darl_rerank.adapters.langchain import DarlCrossEncoder, DarlRerankCompressor, rerank_runnable
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


@pytest.fixture
def documents(texts: list[str]) -> list[Document]:
    return [Document(page_content=text, metadata={"source": i}, id=str(i)) for i, text in enumerate(texts)]


def said(documents: list[Document]) -> list[tuple[Any, ...]]:
    keys = ("expected_gain", "grade", "grade_name", "probabilities", "novelty", "judged")
    return [(d.metadata["source"], d.page_content, *(d.metadata[key] for key in keys)) for d in documents]


def expected(ranking: list[RankedDocument]) -> list[tuple[Any, ...]]:
    return [
        (r.index, r.document, r.score, r.grade, r.grade_name, list(r.probabilities), r.novelty, r.judged)
        for r in ranking
    ]


def test_the_compressor_says_what_the_reranker_says(
    tiny_reranker: Reranker, documents: list[Document], query: str, ranking: list[RankedDocument]
) -> None:
    found = DarlRerankCompressor(reranker=tiny_reranker).compress_documents(documents, query)
    assert said(found) == expected(ranking)
    assert [d.id for d in found] == [str(r.index) for r in ranking]
    assert [d.metadata["relevance_score"] for d in found] == [r.score / 3 for r in ranking]
    assert all(d.metadata.keys() == {"source"} for d in documents)  # the caller's own are as they were


def test_in_a_retriever_over_a_vector_store(
    tiny_reranker: Reranker, documents: list[Document], query: str, ranking: list[RankedDocument]
) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(documents)
    retriever = ContextualCompressionRetriever(
        base_compressor=DarlRerankCompressor(reranker=tiny_reranker, top_n=2),
        base_retriever=store.as_retriever(search_kwargs={"k": 4}),
    )
    found = retriever.invoke(query)
    assert [d.page_content for d in found] == [r.document for r in ranking[:2]]
    assert [d.metadata["expected_gain"] for d in found] == pytest.approx([r.score for r in ranking[:2]], abs=1e-6)


def test_async_off_the_event_loop(
    tiny_reranker: Reranker,
    documents: list[Document],
    query: str,
    ranking: list[RankedDocument],
    off_the_loop: Callable[..., Any],
) -> None:
    compressor = DarlRerankCompressor(reranker=tiny_reranker)
    assert said(off_the_loop(lambda: compressor.acompress_documents(documents, query))) == expected(ranking)
    runnable = rerank_runnable(tiny_reranker)
    assert said(off_the_loop(lambda: runnable.ainvoke({"query": query, "documents": documents}))) == expected(ranking)


def test_concurrent_calls_share_batches(
    tiny_reranker: Reranker,
    documents: list[Document],
    query: str,
    ranking: list[RankedDocument],
    together: Callable[..., Any],
) -> None:
    compressor = DarlRerankCompressor(reranker=tiny_reranker)
    for found in together(lambda: compressor.acompress_documents(documents, query)):
        assert said(found) == expected(ranking)


def test_a_runnable_in_a_chain(
    tiny_reranker: Reranker, documents: list[Document], query: str, ranking: list[RankedDocument]
) -> None:
    retriever = RunnableLambda(lambda asked: documents)
    chain = {"query": RunnablePassthrough(), "documents": retriever} | rerank_runnable(tiny_reranker, top_n=3)
    assert said(chain.invoke(query)) == expected(ranking[:3])


def test_the_cross_encoder(
    tiny_reranker: Reranker, documents: list[Document], query: str, ranking: list[RankedDocument]
) -> None:
    encoder = DarlCrossEncoder(tiny_reranker)
    found = CrossEncoderReranker(model=encoder, top_n=4).compress_documents(documents, query)
    assert [d.page_content for d in found] == [r.document for r in ranking]
    scores = encoder.score([(query, d.page_content) for d in documents])
    by_index = sorted(ranking, key=lambda r: r.index)
    assert scores == pytest.approx([r.score / 3 for r in by_index], abs=1e-6)
    assert encoder.score([]) == []


def test_a_document_that_cannot_be_judged_and_a_lowest_grade(
    tiny_reranker: Reranker, documents: list[Document], query: str, texts: list[str]
) -> None:
    every = DarlRerankCompressor(reranker=tiny_reranker).compress_documents([Document(""), *documents], query)
    assert [d.metadata["judged"] for d in every] == [True] * 4 + [False]
    compressor = DarlRerankCompressor(reranker=tiny_reranker, options={"min_grade": "relevant"})
    kept = tiny_reranker.rerank(query, texts, min_grade="relevant")
    assert 0 < len(kept) < 4
    assert said(compressor.compress_documents(documents, query)) == expected(kept)


def test_what_is_refused(tiny_reranker: Reranker, documents: list[Document]) -> None:
    with pytest.raises(ValidationError, match="top_n"):
        DarlRerankCompressor(reranker=tiny_reranker, top_n=0)
    with pytest.raises(ValidationError, match="top_k"):
        DarlRerankCompressor(reranker=tiny_reranker, top_k=3)  # LangChain's name is top_n
    with pytest.raises(InputError, match=r"unknown options least_grade; Reranker.rerank takes .*min_grade"):
        DarlRerankCompressor(reranker=tiny_reranker, options={"least_grade": 3})
    with pytest.raises(InputError, match="query is empty"):
        DarlRerankCompressor(reranker=tiny_reranker).compress_documents(documents, " ")
    assert DarlRerankCompressor(reranker=tiny_reranker).compress_documents([], "cats") == []
