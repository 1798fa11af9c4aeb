"""LanceDB: the reranker for vector, full-text and hybrid search, as in `table.search(...).rerank(reranker=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from darl_rerank import Reranker
from darl_rerank.errors import InputError

from .judgement import as_reranker, checked_options, judgement, require

require("lancedb", "lancedb", "0.30.0")

import pyarrow as pa
from lancedb.rerankers import Reranker as LanceReranker

_COLUMNS = {
    "relevance_score": pa.float32(),
    "expected_gain": pa.float64(),
    "grade": pa.int32(),
    "grade_name": pa.string(),
    "probabilities": pa.list_(pa.float64()),
    "novelty": pa.float64(),
    "truncated": pa.bool_(),
    "judged": pa.bool_(),
    "reason": pa.string(),
}


class DarlReranker(LanceReranker):  # type: ignore[misc]
    """Reorders rows by graded relevance, in the column `_relevance_score`, in [0, 1].

    The judgement (see `judgement`) is in columns whose names begin with `_`, as those that LanceDB computes do:
    `_expected_gain`, `_grade`, `_grade_name`, `_probabilities`, `_novelty`, `_truncated`, `_judged`, `_reason`.

    Args:
        reranker: what judges; a checkpoint folder or name is loaded, the one that ships if None.
        column: the table's column with the texts.
        return_score: "relevance", or "all" to keep `_distance` and `_score` too.
        options: other arguments of `Reranker.rerank`, such as {"min_grade": "relevant"}.

    Raises:
        InputError: unknown options.
    """

    def __init__(
        self,
        reranker: Reranker | str | Path | None = None,
        *,
        column: str = "text",
        return_score: str = "relevance",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(return_score)
        self.reranker = as_reranker(reranker)
        self.column = column
        self.options = checked_options(options)

    def __str__(self) -> str:
        return f"DarlReranker(column={self.column})"

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """The rows that a vector search found.

        Raises:
            InputError: an empty query, or no such column.
        """
        return self._keep_relevance_score(self._rerank(query, vector_results))

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """The rows that a full-text search found; errors as `rerank_vector`."""
        return self._keep_relevance_score(self._rerank(query, fts_results))

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """The rows that either search found, each once; errors as `rerank_vector`."""
        merge = self._merge_and_keep_scores if self.score == "all" else self.merge_results
        return self._keep_relevance_score(self._rerank(query, merge(vector_results, fts_results)))

    def _rerank(self, query: str, rows: pa.Table) -> pa.Table:
        if self.column not in rows.column_names:
            raise InputError(f"no column {self.column!r} in the results, which have {', '.join(rows.column_names)}")
        texts = [{"text": text} for text in rows[self.column].to_pylist()]
        ranking = self.reranker.rerank(query, texts, **self.options) if texts else []
        said = [judgement(ranked, self.reranker.scale) for ranked in ranking]
        rows = rows.take(np.array([ranked.index for ranked in ranking], dtype=np.int64))
        for name, kind in _COLUMNS.items():
            column = pa.array([values[name] for values in said], type=kind)
            if f"_{name}" in rows.column_names:  # reranked before
                rows = rows.drop_columns([f"_{name}"])
            rows = rows.append_column(f"_{name}", column)
        return rows
