"""LlamaIndex: the reranker as a node postprocessor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darl_rerank import Reranker
from darl_rerank.errors import InputError
from darl_rerank.results import Ranking

from .judgement import as_reranker, checked_options, judgement, require

require("llama-index-core", "llama-index", "0.13.0")

from llama_index.core.bridge.pydantic import Field, field_validator
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle


class DarlRerankPostprocessor(BaseNodePostprocessor):  # type: ignore[misc]
    """Reorders nodes by graded relevance; for `as_query_engine(node_postprocessors=[...])`.

    A node's score is its relevance in [0, 1], None if it was not judged; the judgement is in its metadata (see
    `judgement`), which neither the LLM's prompt nor an embedding gets to see. The nodes are copies.

    Attributes:
        reranker: what judges; a checkpoint folder or name is loaded, the one that ships if None.
        top_n: how many nodes to return; all if None.
        options: other arguments of `Reranker.rerank`, such as {"min_grade": "relevant"}.
        metadata_mode: which metadata is judged along with the text; as for embeddings unless told otherwise.
    """

    reranker: Any = Field(default=None, exclude=True, validate_default=True)
    top_n: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    metadata_mode: MetadataMode = MetadataMode.EMBED

    @field_validator("reranker", mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def _load(cls, reranker: Reranker | str | Path | None) -> Reranker:
        return as_reranker(reranker)

    @field_validator("options")  # type: ignore[untyped-decorator]
    @classmethod
    def _check(cls, options: dict[str, Any]) -> dict[str, Any]:
        return checked_options(options)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex logs it."""
        return "DarlRerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        return self._judged(nodes, self.reranker.rerank(query, self._texts(nodes), top_k=self.top_n, **self.options))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        # The event loop goes on, and calls share their batches.
        query = _query_of(query_bundle)
        if not nodes:
            return []
        return self._judged(
            nodes, await self.reranker.rerank_async(query, self._texts(nodes), top_k=self.top_n, **self.options)
        )

    def _texts(self, nodes: list[NodeWithScore]) -> list[dict[str, Any]]:
        return [
            {"text": node.node.get_content(metadata_mode=self.metadata_mode), "score": node.score} for node in nodes
        ]

    def _judged(self, nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        found = []
        for ranked in ranking:
            said = judgement(ranked, self.reranker.scale)
            score = said["relevance_score"] if ranked.score is not None else None
            found.append(NodeWithScore(node=_with_metadata(nodes[ranked.index].node, said), score=score))
        return found


def _query_of(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise InputError("reranking needs the query: give query_str or query_bundle")
    return str(query_bundle.query_str)


def _with_metadata(node: BaseNode, said: dict[str, Any]) -> BaseNode:
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **said},
            "excluded_llm_metadata_keys": sorted({*node.excluded_llm_metadata_keys, *said}),
            "excluded_embed_metadata_keys": sorted({*node.excluded_embed_metadata_keys, *said}),
        }
    )
