"""Label: the selected pairs get their labels, from annotators, a teacher or the pool itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.model.digests import file_sha256
from darl_rerank.trec.graded_pairs import read_graded_pairs

from ..context import ANNOTATIONS, LABELLED, Context
from ..recipe.settings import SelectStage
from ..selection.annotation import Annotation, label_with_teachers, read_annotations, write_annotations


class AnnotationsWantedError(InputError):
    """Training can go on once the file named in the message has been filled in."""


def inputs(stage: SelectStage) -> dict[str, str | None] | None:
    """Digest of the annotators' file, which is made between two runs and so can't be part of the plan."""
    if stage.labels != "annotations":
        return None
    written = stage.annotations is not None and stage.annotations.is_file()
    return {"annotations": file_sha256(stage.annotations) if written and stage.annotations else None}


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Write labelled.jsonl; returns how many pairs it has and how many were left out.

    Raises:
        AnnotationsWantedError: the annotators' file is not there yet.
    """
    stage = context.recipe.select
    assert stage is not None
    blank = context.work.path("select") / ANNOTATIONS
    rows = context.results["select"]["rows"]
    scale = Checkpoint.load(context.begun).scale
    left_out = 0
    if stage.labels == "pool":
        pool = context.pool
        pairs = [pool[row] for row in rows]
        if not all(pair.labelled for pair in pairs):
            raise InputError('select.labels = "pool", but the pool has pairs without a label')
    elif stage.labels == "teacher":
        assert stage.teacher is not None
        asked = read_graded_pairs(blank, labels="ignored")
        answers = label_with_teachers(asked, [context.reranker(stage.teacher)], scale)
        pairs, left_out = answers.pairs, len(answers.disagreed)
    else:
        if stage.annotations is None or not stage.annotations.is_file():
            wanted = stage.annotations or "a copy of it, named in the recipe as select.annotations"
            raise AnnotationsWantedError(
                f"{len(rows)} pairs wait for their grades in {blank}: put a grade in the place of null, save it as "
                f"{wanted}, and give the same command again"
            )
        pairs = read_annotations(stage.annotations, scale)
    count = write_annotations(folder / LABELLED, (Annotation(pair, 0.0, ()) for pair in pairs if pair.labelled))
    return {"labels": stage.labels, "pairs": count, "left_out": left_out}
