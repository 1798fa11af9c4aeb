"""As shared_environment.py, in a second environment: cohere 7, and Haystack's ranker for Jina (a newer httpx)."""

from __future__ import annotations

from shared_environment import KEY, MODEL, Ranked, by_text, cohere_v1, cohere_v2, run


def haystack_jina(url: str, query: str, documents: list[str]) -> Ranked:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    ranker = JinaRanker(model=MODEL, api_key=Secret.from_token(KEY), base_url=f"{url}/v1/rerank", top_k=3)
    found = ranker.run(query, [Document(content=text) for text in documents])
    assert found["meta"]["usage"]["total_tokens"] > 0
    return by_text(documents, [(document.content, document.score) for document in found["documents"]])


if __name__ == "__main__":
    run([cohere_v2, cohere_v1, haystack_jina])
