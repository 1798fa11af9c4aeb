"""PyTerrier: the reranker as a transformer, as in `bm25 >> pt.text.get_text(dataset) >> darl`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darl_rerank import Reranker

from .frames import rerank_frame
from .judgement import as_reranker, checked_options, require

require("pyterrier", "pyterrier", "1.0.0")

import pyterrier as pt

if TYPE_CHECKING:
    import pandas as pd


class DarlTransformer(pt.Transformer):  # type: ignore[misc]
    """Reorders each query's documents by expected gain, in columns `score` and `rank` (from 0, as PyTerrier counts).

    Adds `grade`, `grade_name`, `probabilities`, `novelty`, `truncated`, `judged` and `reason`. A document that was not
    judged comes last, with a score of one below the lowest gain, since a run needs a number.

    Args:
        reranker: what judges; a checkpoint folder or name is loaded, the one that ships if None.
        text_field: the column with the documents' texts.
        title_field: the column with their titles, if there is one.
        top_k: how many documents of each query to return; all if None.
        options: other arguments of `Reranker.rerank_many`, such as {"min_grade": "relevant"}.

    Raises:
        InputError: unknown options.
    """

    def __init__(
        self,
        reranker: Reranker | str | Path | None = None,
        *,
        text_field: str = "text",
        title_field: str | None = None,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.reranker = as_reranker(reranker)
        self.text_field = text_field
        self.title_field = title_field
        self.top_k = top_k
        self.options = checked_options(options)

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Rerank a frame of results.

        Raises:
            InputError: an empty query, or a query id with two texts.
            pyterrier.validate.InputValidationError: columns are missing.
        """
        fields = [self.text_field, *([self.title_field] if self.title_field else [])]
        pt.validate.result_frame(inp, extra_columns=["query", *fields])
        found = rerank_frame(
            self.reranker, inp, text=self.text_field, title=self.title_field, top_k=self.top_k, **self.options
        )
        found["rank"] = found["rank"].astype("int64") - 1 + pt.model.FIRST_RANK
        found["score"] = found["score"].astype("float64").fillna(float(self.reranker.scale.gains[0]) - 1.0)
        return found
