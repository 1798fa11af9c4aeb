from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import pytest
from darl_rerank.adapters.llama_index import DarlRerankPostprocessor
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.vector_stores.faiss import FaissVectorStore

from darl_rerank import InputError, Reranker
from darl_rerank.results import RankedDocument


@pytest.fixture
def nodes(texts: list[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5) for i, text in enumerate(texts)]


def said(nodes: list[NodeWithScore]) -> list[tuple[Any, ...]]:
    keys = ("expected_gain", "grade", "grade_name", "probabilities", "novelty", "judged")
    return [(n.node.node_id, *(n.metadata[key] for key in keys)) for n in nodes]


def expected(ranking: list[RankedDocument]) -> list[tuple[Any, ...]]:
    return [(str(r.index), r.score, r.grade, r.grade_name, list(r.probabilities), r.novelty, r.judged) for r in ranking]


def test_the_postprocessor_says_what_the_reranker_says(
    tiny_reranker: Reranker, nodes: list[NodeWithScore], query: str, ranking: list[RankedDocument]
) -> None:
    found = DarlRerankPostprocessor(reranker=tiny_reranker).postprocess_nodes(nodes, query_str=query)
    assert said(found) == expected(ranking)
    assert [n.score for n in found] == [r.score / 3 for r in ranking]
    assert all(n.score == 0.5 and not n.metadata for n in nodes)  # the caller's own are as they were


def test_in_a_query_engine_over_faiss(
    tiny_reranker: Reranker, nodes: list[NodeWithScore], query: str, ranking: list[RankedDocument]
) -> None:
    store = FaissVectorStore(faiss_index=faiss.IndexFlatL2(8))
    index = VectorStoreIndex(
        [n.node for n in nodes],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MockEmbedding(embed_dim=8),
    )
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=4,
        node_postprocessors=[DarlRerankPostprocessor(reranker=tiny_reranker, top_n=2)],
    )
    answer = engine.query(query)
    assert [n.text for n in answer.source_nodes] == [r.document for r in ranking[:2]]
    # The LLM (the mock repeats its prompt) gets the best texts, and nothing of the judgement.
    assert ranking[0].document in str(answer)
    assert not {"grade", "novelty", "probabilities"} & set(str(answer).replace(":", " ").split())


def test_async_off_the_event_loop(
    tiny_reranker: Reranker,
    nodes: list[NodeWithScore],
    query: str,
    ranking: list[RankedDocument],
    off_the_loop: Callable[..., Any],
) -> None:
    processor = DarlRerankPostprocessor(reranker=tiny_reranker)
    assert said(off_the_loop(lambda: processor.apostprocess_nodes(nodes, query_str=query))) == expected(ranking)


def test_concurrent_calls_share_batches(
    tiny_reranker: Reranker,
    nodes: list[NodeWithScore],
    query: str,
    ranking: list[RankedDocument],
    together: Callable[..., Any],
) -> None:
    processor = DarlRerankPostprocessor(reranker=tiny_reranker)
    for found in together(lambda: processor.apostprocess_nodes(nodes, query_str=query)):
        assert said(found) == expected(ranking)


def test_which_metadata_is_judged(tiny_reranker: Reranker, query: str) -> None:
    node = TextNode(text="Indoor cats live long.", metadata={"title": "Cats"})
    for mode, text in (
        (MetadataMode.EMBED, "title: Cats\n\nIndoor cats live long."),
        (MetadataMode.NONE, "Indoor cats live long."),
    ):
        processor = DarlRerankPostprocessor(reranker=tiny_reranker, metadata_mode=mode)
        found = processor.postprocess_nodes([NodeWithScore(node=node)], query_str=query)
        assert found[0].metadata["expected_gain"] == tiny_reranker.rerank(query, [text])[0].score
        # Judged a second time, the same text is seen: the judgement is no part of it.
        again = processor.postprocess_nodes(found, query_str=query)
        assert again[0].metadata["expected_gain"] == found[0].metadata["expected_gain"]


def test_a_node_that_cannot_be_judged_and_a_lowest_grade(
    tiny_reranker: Reranker, nodes: list[NodeWithScore], query: str, texts: list[str]
) -> None:
    nodes.insert(0, NodeWithScore(node=TextNode(text=" ", id_="empty"), score=0.9))
    found = DarlRerankPostprocessor(reranker=tiny_reranker).postprocess_nodes(nodes, query_str=query)
    assert (found[-1].node.node_id, found[-1].score, found[-1].metadata["judged"]) == ("empty", None, False)
    processor = DarlRerankPostprocessor(reranker=tiny_reranker, options={"min_grade": "relevant"})
    kept = tiny_reranker.rerank(query, texts, min_grade="relevant")
    assert 0 < len(kept) < 4
    assert said(processor.postprocess_nodes(nodes[1:], query_str=query)) == expected(kept)


def test_what_is_refused(tiny_reranker: Reranker, nodes: list[NodeWithScore]) -> None:
    processor = DarlRerankPostprocessor(reranker=tiny_reranker)
    with pytest.raises(InputError, match="needs the query"):
        processor.postprocess_nodes(nodes)
    assert processor.postprocess_nodes([], query_str="cats") == []
    assert "reranker" not in processor.to_dict()
