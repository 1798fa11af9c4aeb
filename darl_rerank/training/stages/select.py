"""Select: which pairs of the pool to have labelled, by DASA or another strategy, written as a file for annotators."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..context import ANNOTATIONS, Context
from ..selection.annotation import Annotation, write_annotations
from ..selection.select_pairs import select_pairs

log = logging.getLogger(__name__)


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Write annotations.jsonl; returns the chosen rows of `context.pool` and the summary of the selection."""
    stage = context.recipe.select
    assert stage is not None
    reranker = context.reranker(context.begun)
    pool = context.pool
    chosen = select_pairs(
        pool, context.data.train, context.data.dev, reranker, reranker, folder,
        strategy=stage.strategy, budget=stage.budget, settings=stage.settings, progress=context.progress,
    )  # fmt: skip
    rows = [int(row) for row in chosen.rows]
    blank = [replace(pool[row], grade=None, probabilities=None) for row in rows]
    write_annotations(
        folder / ANNOTATIONS,
        (Annotation(*item) for item in zip(blank, chosen.novelty, chosen.predicted, strict=True)),
    )
    log.info("select: %s", chosen.summary["reason"])
    for warning in chosen.summary["warnings"]:
        log.warning("select: %s", warning)
    return {"rows": rows, **chosen.summary}
