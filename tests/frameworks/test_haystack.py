from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from darl_rerank.adapters.haystack import DarlRanker
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


@pytest.fixture
def documents(texts: list[str]) -> list[Document]:
    return [Document(id=str(i), content=text, meta={"page": i}, score=0.5) for i, text in enumerate(texts)]


def said(documents: list[Document]) -> list[tuple[Any, ...]]:
    keys = ("expected_gain", "grade", "grade_name", "probabilities", "novelty", "judged")
    return [(d.id, d.content, *(d.meta[key] for key in keys)) for d in documents]


def expected(ranking: list[RankedDocument]) -> list[tuple[Any, ...]]:
    return [
        (str(r.index), r.document, r.score, r.grade, r.grade_name, list(r.probabilities), r.novelty, r.judged)
        for r in ranking
    ]


def test_the_component_says_what_the_reranker_says(
    tiny_reranker: Reranker, documents: list[Document], query: str, ranking: list[RankedDocument]
) -> None:
    found = DarlRanker(tiny_reranker).run(query, documents)["documents"]
    assert said(found) == expected(ranking)
    assert [d.score for d in found] == [r.score / 3 for r in ranking]
    assert [d.meta["page"] for d in found] == [r.index for r in ranking]
    assert all(d.score == 0.5 and d.meta.keys() == {"page"} for d in documents)  # the caller's own are as they were
    assert said(DarlRanker(tiny_reranker).run(query, documents, top_k=1)["documents"]) == expected(ranking[:1])


def test_a_pipeline_is_written_as_yaml_and_read_again(
    tiny_model: Path, tiny_reranker: Reranker, documents: list[Document], query: str, tmp_path: Path
) -> None:
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    ranker = DarlRanker(
        tiny_model, top_k=2, options={"strict": True}, engine="torch", device="cpu", precision="float32"
    )
    pipeline = Pipeline()
    pipeline.add_component("bm25", InMemoryBM25Retriever(store, top_k=3))
    pipeline.add_component("darl", ranker)
    pipeline.connect("bm25.documents", "darl.documents")
    file = tmp_path / "pipeline.yaml"
    file.write_text(pipeline.dumps(), "utf-8")
    assert "darl_rerank.adapters.haystack.DarlRanker" in file.read_text("utf-8")

    read = Pipeline.loads(file.read_text("utf-8"), allowed_modules=["darl_rerank.*"])
    assert read == pipeline
    read.get_component("bm25").document_store = store
    values = {"bm25": {"query": query}, "darl": {"query": query}}
    first, again = pipeline.run(values)["darl"]["documents"], read.run(values)["darl"]["documents"]
    assert said(again) == said(first)

    candidates = InMemoryBM25Retriever(store, top_k=3).run(query)["documents"]
    best = tiny_reranker.rerank(query, candidates, top_k=2)
    assert [(d.id, d.meta["expected_gain"]) for d in first] == [(r.docid, r.score) for r in best]


def test_async_off_the_event_loop(
    tiny_reranker: Reranker,
    documents: list[Document],
    query: str,
    ranking: list[RankedDocument],
    off_the_loop: Callable[..., Any],
) -> None:
    ranker = DarlRanker(tiny_reranker)
    assert said(off_the_loop(lambda: ranker.run_async(query, documents))["documents"]) == expected(ranking)
    pipeline = Pipeline()
    pipeline.add_component("darl", ranker)
    values = {"darl": {"query": query, "documents": documents}}
    assert said(off_the_loop(lambda: pipeline.run_async(values))["darl"]["documents"]) == expected(ranking)


def test_concurrent_calls_share_batches(
    tiny_reranker: Reranker,
    documents: list[Document],
    query: str,
    ranking: list[RankedDocument],
    together: Callable[..., Any],
) -> None:
    ranker = DarlRanker(tiny_reranker)
    for found in together(lambda: ranker.run_async(query, documents)):
        assert said(found["documents"]) == expected(ranking)


def test_the_model_is_loaded_late_and_let_go(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, documents: list[Document], query: str
) -> None:
    loaded = []
    load = Reranker.from_pretrained

    def counted(model: str, **options: Any) -> Reranker:
        loaded.append((model, options["engine"]))
        return load(model, **options)

    monkeypatch.setattr(Reranker, "from_pretrained", counted)
    ranker = DarlRanker(tiny_model, engine="torch")
    assert loaded == []
    ranker.warm_up()
    ranker.warm_up()
    ranker.run(query, documents)
    assert loaded == [(str(tiny_model), "torch")]
    ranker.close()
    ranker.run(query, documents)
    assert len(loaded) == 2


def test_a_document_that_cannot_be_judged_and_a_lowest_grade(
    tiny_reranker: Reranker, documents: list[Document], query: str, texts: list[str]
) -> None:
    documents.insert(0, Document(id="image", content=None))
    found = DarlRanker(tiny_reranker).run(query, documents)["documents"]
    assert (found[-1].id, found[-1].score, found[-1].meta["judged"]) == ("image", None, False)
    ranker = DarlRanker(tiny_reranker, options={"min_grade": "relevant"})
    kept = tiny_reranker.rerank(query, texts, min_grade="relevant")
    assert 0 < len(kept) < 4
    assert said(ranker.run(query, documents[1:])["documents"]) == expected(kept)


def test_what_is_refused(tiny_reranker: Reranker, documents: list[Document]) -> None:
    with pytest.raises(InputError, match="top_k"):
        DarlRanker(tiny_reranker, top_k=0)
    with pytest.raises(InputError, match="top_k"):
        DarlRanker(tiny_reranker).run("cats", documents, top_k=0)
    with pytest.raises(InputError, match="can't be written down"):
        DarlRanker(tiny_reranker).to_dict()
    with pytest.raises(InputError, match="query is empty"):
        DarlRanker(tiny_reranker).run(" ", documents)
    assert DarlRanker(tiny_reranker).run("cats", []) == {"documents": []}
