"""Haystack: the reranker as a ranker component, which a pipeline's YAML can hold."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from darl_rerank import Reranker
from darl_rerank.arguments import check_count
from darl_rerank.errors import InputError
from darl_rerank.model.prompt import LongDocuments
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.results import Ranking

from .judgement import checked_options, judgement, require

require("haystack-ai", "haystack", "3.0.0")

from haystack import Document, component, default_from_dict, default_to_dict

_LOADING = threading.Lock()


@component
class DarlRanker:
    """Reorders documents by graded relevance.

    A document's score is its relevance in [0, 1], None if it was not judged; the judgement is in its `meta` (see
    `judgement`). The documents are copies. The model is loaded by `warm_up`, or by the first run.

    Args:
        model: a checkpoint folder or name, as `Reranker.from_pretrained` takes it; or a reranker, which a YAML
            can't hold. The one that ships if None.
        top_k: how many documents to return; all if None.
        options: other arguments of `Reranker.rerank`, such as {"min_grade": "relevant"}.
        engine, device, precision, long_documents: as `Reranker.from_pretrained` takes them.

    Raises:
        InputError: `top_k` below 1, or unknown options.
    """

    def __init__(
        self,
        model: str | Path | Reranker | None = None,
        *,
        top_k: int | None = None,
        options: dict[str, Any] | None = None,
        engine: str = "auto",
        device: str | None = None,
        precision: str | None = None,
        long_documents: LongDocuments = "truncate",
    ) -> None:
        if top_k is not None:
            check_count("top_k", top_k)
        self._given = isinstance(model, Reranker)
        self._reranker: Reranker | None = model if isinstance(model, Reranker) else None
        self.model = None if model is None or isinstance(model, Reranker) else str(model)
        self.top_k = top_k
        self.options = checked_options(options)
        self._loading: dict[str, Any] = {
            "engine": engine,
            "device": device,
            "precision": precision,
            "long_documents": long_documents,
        }

    def warm_up(self) -> None:
        """Load the model.

        Raises:
            InputError: no such checkpoint.
        """
        self._loaded()

    def _loaded(self) -> Reranker:
        # Calls that run at the same time must not load the model once each.
        with _LOADING:
            if self._reranker is None:
                self._reranker = Reranker.from_pretrained(self.model, **self._loading)
            return self._reranker

    def close(self) -> None:
        """Let go of a model that `warm_up` has loaded."""
        if not self._given:
            self._reranker = None

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """The documents in order of expected gain, the best first.

        Args:
            query: its text.
            documents: what a retriever found.
            top_k: how many to return; as in the constructor if None.

        Raises:
            InputError: an empty query, or `top_k` below 1.
        """
        reranker = self._loaded()
        if not documents:
            return {"documents": []}
        top_k = self.top_k if top_k is None else top_k
        return _judged(reranker.rerank(query, documents, top_k=top_k, **self.options), reranker.scale)

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run` by `Reranker.rerank_async`: the event loop goes on, and calls share their batches."""
        reranker = await asyncio.to_thread(self._loaded)
        if not documents:
            return {"documents": []}
        top_k = self.top_k if top_k is None else top_k
        return _judged(await reranker.rerank_async(query, documents, top_k=top_k, **self.options), reranker.scale)

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's YAML.

        Raises:
            InputError: made with a reranker instead of a checkpoint's name.
        """
        if self._given:
            raise InputError("a ranker made with a loaded reranker can't be written down: give it a checkpoint's name")
        values: dict[str, Any] = default_to_dict(
            self, model=self.model, top_k=self.top_k, options=self.options, **self._loading
        )
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DarlRanker:
        """The inverse of `to_dict`."""
        ranker: DarlRanker = default_from_dict(cls, data)
        return ranker


def _judged(ranking: Ranking, scale: RelevanceScale) -> dict[str, list[Document]]:
    found = []
    for ranked in ranking:
        document: Document = ranked.document
        said = judgement(ranked, scale)
        score = said["relevance_score"] if ranked.score is not None else None
        found.append(replace(document, score=score, meta={**document.meta, **said}))
    return {"documents": found}
