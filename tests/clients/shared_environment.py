"""Runs in an environment of its own, without darl-rerank: every client that installs beside cohere 5 asks a server.

`python shared_environment.py URL JSON`, with query and documents in JSON, prints for each client what it made of the
answer: [[index, score], …] in its order, or the error that it raised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Ranked = list[list[float]]

KEY = "any"
MODEL = "tiny"


def by_text(documents: list[str], ranked: list[tuple[str, float]]) -> Ranked:
    return [[documents.index(text), score] for text, score in ranked]


def cohere_v2(url: str, query: str, documents: list[str]) -> Ranked:
    import cohere

    client = cohere.ClientV2(KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=query, documents=documents, top_n=3)
    return [[result.index, result.relevance_score] for result in answer.results]


def cohere_v1(url: str, query: str, documents: list[str]) -> Ranked:
    import cohere

    client = cohere.Client(KEY, base_url=url)
    answer = client.rerank(model=MODEL, query=query, documents=documents, top_n=3, return_documents=True)
    assert [result.document.text for result in answer.results] == [documents[result.index] for result in answer.results]
    return [[result.index, result.relevance_score] for result in answer.results]


def langchain_cohere(url: str, query: str, documents: list[str]) -> Ranked:
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    compressor = CohereRerank(model=MODEL, cohere_api_key=KEY, base_url=url, top_n=3)
    found = compressor.compress_documents([Document(page_content=text) for text in documents], query)
    return by_text(documents, [(d.page_content, d.metadata["relevance_score"]) for d in found])


def llama_index_cohere(url: str, query: str, documents: list[str]) -> Ranked:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return llama_index(CohereRerank(model=MODEL, api_key=KEY, base_url=url, top_n=3), query, documents)


def llama_index_jina(url: str, query: str, documents: list[str]) -> Ranked:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return llama_index(JinaRerank(model=MODEL, api_key=KEY, base_url=f"{url}/v1", top_n=3), query, documents)


def llama_index_tei(url: str, query: str, documents: list[str]) -> Ranked:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return llama_index(TextEmbeddingInference(base_url=url, auth_token=KEY, top_n=3), query, documents)


def llama_index(postprocessor: Any, query: str, documents: list[str]) -> Ranked:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in documents]
    found = postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(query))
    return by_text(documents, [(node.node.get_content(), node.score) for node in found])


def haystack_cohere(url: str, query: str, documents: list[str]) -> Ranked:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.cohere import CohereRanker

    ranker = CohereRanker(model=MODEL, api_key=Secret.from_token(KEY), api_base_url=url, top_k=3)
    found = ranker.run(query, [Document(content=text) for text in documents])["documents"]
    return by_text(documents, [(document.content, document.score) for document in found])


def voyage(url: str, query: str, documents: list[str]) -> Ranked:
    import voyageai

    client = voyageai.Client(KEY, base_url=f"{url}/v1")
    answer = client.rerank(query, documents, model=MODEL, top_k=3)
    assert answer.total_tokens > 0
    return [[result.index, result.relevance_score] for result in answer.results]


def langchain_infinity(url: str, query: str, documents: list[str]) -> Ranked:
    from infinity_client import Client
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank
    from langchain_core.documents import Document

    compressor = InfinityRerank(client=Client(base_url=url), model=MODEL, top_n=3)
    found = compressor.compress_documents([Document(page_content=text) for text in documents], query)
    return by_text(documents, [(d.page_content, d.metadata["relevance_score"]) for d in found])


def infinity(url: str, query: str, documents: list[str]) -> Ranked:
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    answer: Any = rerank.sync(
        client=Client(base_url=url), body=RerankInput(query=query, documents=documents, model=MODEL, top_n=3)
    )
    return [[result.index, result.relevance_score] for result in answer.results]


def run(clients: list[Callable[[str, str, list[str]], Any]]) -> None:
    """Ask with each client, and print what came of it."""
    # None of them may call home, nor anything else that is not this machine.
    os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "false", "LANGCHAIN_TRACING_V2": "false", "NO_PROXY": "127.0.0.1"}
    url, asked = sys.argv[1], json.loads(sys.argv[2])
    found: dict[str, Any] = {}
    for client in clients:
        try:
            found[client.__name__] = client(url, asked["query"], asked["documents"])
        except Exception as error:
            found[client.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    run([
        cohere_v2, cohere_v1, langchain_cohere, llama_index_cohere, llama_index_jina, llama_index_tei, haystack_cohere,
        voyage, langchain_infinity, infinity,
    ])  # fmt: skip
