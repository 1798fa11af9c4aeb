"""Files for annotators: chosen pairs out, the same pairs with grades in; and labels from teacher models.

One line a pair:

    {"query": …, "document": …, "grade": null, "novelty": 93.1, "predicted": [0.1, 0.2, 0.6, 0.1], "qid": …, "docid": …}

Annotators put a grade of the scale, its number or its name, in the place of null. Filled in, it is a file of graded
pairs (`darl_rerank.trec.graded_pairs`) that any command takes. `predicted` is the model's own distribution, never a
label: a soft label stands under `probabilities`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import InputError
from darl_rerank.files import atomic_write
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.results import PairScores
from darl_rerank.trec.graded_pairs import GradedPair, iterate_graded_pairs

_SHOWN = 8
_TEACHER_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Annotation:
    """A pair to be graded.

    Attributes:
        pair: query and document, usually without a label.
        novelty: percentile 0..100.
        predicted: the model's calibrated grade distribution, shape (K,).
    """

    pair: GradedPair
    novelty: float
    predicted: Sequence[float]


def write_annotations(path: str | Path, annotations: Iterable[Annotation]) -> int:
    """Write the file, whole or not at all, and return the number of pairs."""
    count = 0
    with atomic_write(path) as stream:
        for count, item in enumerate(annotations, 1):  # noqa: B007
            values: dict[str, Any] = {"query": item.pair.query, "document": item.pair.document}
            if item.pair.probabilities is not None:
                values["probabilities"] = [round(p, 6) for p in item.pair.probabilities]
            else:
                values["grade"] = item.pair.grade
            values |= {
                "novelty": round(float(item.novelty), 3),
                "predicted": [round(float(p), 4) for p in item.predicted],
                "qid": item.pair.qid,
            }
            values |= {k: v for k, v in (("docid", item.pair.docid), ("group", item.pair.group)) if v is not None}
            stream.write(json.dumps(values, ensure_ascii=False) + "\n")
    return count


def read_annotations(path: str | Path, scale: RelevanceScale, *, partial: bool = False) -> list[GradedPair]:
    """The graded pairs of a file that came back from annotators.

    Args:
        path: the file.
        scale: its grades, by number or by name.
        partial: leave out the pairs that have no grade yet instead of refusing the file.

    Raises:
        InputError: a grade off the scale (all such lines at once), pairs without a grade (unless `partial`), or no
            grade at all.
    """
    names = tuple(grade.name for grade in scale.grades)
    pairs = list(iterate_graded_pairs(path, grades=len(scale), names=names, labels="optional"))
    graded = [pair for pair in pairs if pair.labelled]
    if len(graded) == len(pairs):
        return graded
    missing = [pair.line for pair in pairs if not pair.labelled]
    lines = ", ".join(map(str, missing[:_SHOWN])) + (", …" if len(missing) > _SHOWN else "")
    choices = ", ".join(f"{k} {name}" for k, name in enumerate(names))
    if not graded:
        raise InputError(f"none of the {len(pairs)} pairs has a grade yet: expected one of {choices}", path=path)
    if not partial:
        raise InputError(
            f"{len(missing)} of {len(pairs)} pairs have no grade yet (lines {lines}): expected one of {choices}",
            path=path,
            line=missing[0],
        )
    return graded


class Teacher(Protocol):
    """A model that labels: `darl_rerank.Reranker`."""

    @property
    def scale(self) -> RelevanceScale: ...

    def score_pairs(self, pairs: Sequence[tuple[str, Any]]) -> PairScores: ...


@dataclass(frozen=True, slots=True)
class TeacherLabels:
    """What teachers made of some pairs.

    Attributes:
        pairs: those they agree on, with soft labels: the mean of their calibrated distributions.
        disagreed: numbers of the pairs that were left out.
    """

    pairs: list[GradedPair]
    disagreed: list[int]


def label_with_teachers(
    pairs: Sequence[GradedPair], teachers: Sequence[Teacher], scale: RelevanceScale, *, tolerance: int = 0
) -> TeacherLabels:
    """Soft labels from one teacher, or from several where they agree.

    Args:
        pairs: to label; a label they have is replaced.
        teachers: at least one, each with as many grades as `scale` has, under the same names.
        scale: of the model to be trained.
        tolerance: how far apart the teachers' most probable grades may lie; 0 asks for the same one.

    Raises:
        InputError: no teacher, or one with another scale.
    """
    if not teachers:
        raise InputError("labelling needs at least one teacher")
    names = [grade.name for grade in scale.grades]
    for number, teacher in enumerate(teachers, 1):
        theirs = [grade.name for grade in teacher.scale.grades]
        if theirs != names:
            raise InputError(f"teacher {number} grades on {', '.join(theirs)}; the model needs {', '.join(names)}")
    opinions = np.stack([_distributions(teacher, pairs, len(names)) for teacher in teachers])
    grades = opinions.argmax(axis=2)
    agreed = grades.max(axis=0) - grades.min(axis=0) <= tolerance
    labels = opinions.mean(axis=0)
    return TeacherLabels(
        [
            replace(pairs[i], grade=None, probabilities=tuple(labels[i].tolist()))
            for i in np.flatnonzero(agreed).tolist()
        ],
        np.flatnonzero(~agreed).tolist(),
    )


def _distributions(teacher: Teacher, pairs: Sequence[GradedPair], grades: int) -> NDArray[np.float64]:
    """Calibrated distributions of one teacher, shape (n, K)."""
    result = np.zeros((len(pairs), grades))
    for start in range(0, len(pairs), _TEACHER_BLOCK):
        block = [(pair.query, pair.document) for pair in pairs[start : start + _TEACHER_BLOCK]]
        result[start : start + len(block)] = teacher.score_pairs(block).probabilities
    return result
