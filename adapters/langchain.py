"""LangChain: the reranker as a document compressor, as a runnable and as a cross-encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from darl_rerank import Reranker
from darl_rerank.results import Ranking

from .judgement import as_reranker, checked_options, judgement, require

require("langchain-core", "langchain", "1.4.0")

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import ConfigDict, Field, field_validator


class DarlRerankCompressor(BaseDocumentCompressor):  # type: ignore[misc]
    """Reorders documents by graded relevance; the judgement is in their metadata, see `judgement`.

    For `ContextualCompressionRetriever(base_compressor=..., base_retriever=...)`. The documents are copies.

    Attributes:
        reranker: what judges; a checkpoint folder or name is loaded, the one that ships if None.
        top_n: how many documents to return; all if None.
        options: other arguments of `Reranker.rerank`, such as {"min_grade": "relevant"}.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    reranker: Any = Field(default=None, exclude=True, validate_default=True)
    top_n: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("reranker", mode="before")
    @classmethod
    def _load(cls, reranker: Reranker | str | Path | None) -> Reranker:
        return as_reranker(reranker)

    @field_validator("options")
    @classmethod
    def _check(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked_options(options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The documents in order of expected gain, the best first.

        Raises:
            InputError: an empty query.
        """
        if not documents:
            return []
        return self._judged(self.reranker.rerank(query, documents, top_k=self.top_n, **self.options))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` by `Reranker.rerank_async`: the event loop goes on, and calls share their batches."""
        if not documents:
            return []
        return self._judged(await self.reranker.rerank_async(query, documents, top_k=self.top_n, **self.options))

    def _judged(self, ranking: Ranking) -> list[Document]:
        return [
            ranked.document.model_copy(
                update={"metadata": {**ranked.document.metadata, **judgement(ranked, self.reranker.scale)}}
            )
            for ranked in ranking
        ]


def rerank_runnable(
    reranker: Reranker | str | Path | None = None, **arguments: Any
) -> Runnable[Mapping[str, Any], list[Document]]:
    """A runnable from {"query": text, "documents": documents} to the reranked documents.

    Arguments as `DarlRerankCompressor`.
    """
    compressor = DarlRerankCompressor(reranker=reranker, **arguments)

    def rerank(values: Mapping[str, Any]) -> list[Document]:
        return compressor.compress_documents(values["documents"], values["query"])

    async def arerank(values: Mapping[str, Any]) -> list[Document]:
        return await compressor.acompress_documents(values["documents"], values["query"])

    return RunnableLambda(rerank, afunc=arerank, name="darl-rerank")


class DarlCrossEncoder(BaseCrossEncoder):  # type: ignore[misc]
    """The reranker as LangChain's cross-encoder: a relevance in [0, 1] for each pair.

    Args:
        reranker: as `DarlRerankCompressor`.
    """

    def __init__(self, reranker: Reranker | str | Path | None = None) -> None:
        self.reranker = as_reranker(reranker)

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Relevance of each (query, document), in their order; 0 for an empty document.

        Raises:
            InputError: an empty query.
        """
        if not text_pairs:
            return []
        gains = self.reranker.score_pairs([(query, text) for query, text in text_pairs], strict=False).score
        return [float(share) for share in self.reranker.scale.relevance(gains)]
