"""Annotation files out and in, and labels from teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darl_rerank.errors import InputError
from darl_rerank.model.scale import RelevanceScale
from darl_rerank.results import PairScores
from darl_rerank.training.selection.annotation import (
    Annotation,
    label_with_teachers,
    read_annotations,
    write_annotations,
)
from darl_rerank.trec.graded_pairs import GradedPair

SCALE = RelevanceScale.named("ternary")


def pairs_of(count: int) -> list[GradedPair]:
    return [GradedPair(f"query {i}", f"Title\nänd text {i}", None, None, f"q{i}", f"d{i}") for i in range(count)]


def grade(path: Path, grades: Sequence[Any]) -> None:
    """What an annotator does."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps({**r, "grade": g}) + "\n" for r, g in zip(rows, grades, strict=True)), "utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "annotate.jsonl"
    assert write_annotations(path, [Annotation(pair, 93.1, [0.2, 0.5, 0.3]) for pair in pairs_of(4)]) == 4
    return path


def test_a_filled_file_comes_back_with_its_grades(file: Path) -> None:
    row = json.loads(file.read_text("utf-8").splitlines()[0])
    assert (row["grade"], row["novelty"], row["predicted"]) == (None, 93.1, [0.2, 0.5, 0.3])
    grade(file, [2, "weak", "0", "STRONG"])
    back = read_annotations(file, SCALE)
    assert [pair.grade for pair in back] == [2, 1, 0, 2]
    assert [(p.query, p.document, p.qid, p.docid) for p in back] == [
        (p.query, p.document, p.qid, p.docid) for p in pairs_of(4)
    ]


def test_a_half_filled_file_is_refused_with_its_lines(file: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 4 pairs has a grade yet: expected one of 0 irrelevant, 1 weak"):
        read_annotations(file, SCALE)
    grade(file, [2, None, 0, None])
    with pytest.raises(InputError, match=r"jsonl:2: 2 of 4 pairs have no grade yet \(lines 2, 4\)"):
        read_annotations(file, SCALE)
    assert [pair.grade for pair in read_annotations(file, SCALE, partial=True)] == [2, 0]


def test_grades_off_the_scale_are_refused_together(file: Path) -> None:
    grade(file, [3, None, "excellent", 1])
    with pytest.raises(InputError) as raised:
        read_annotations(file, SCALE, partial=True)
    assert "jsonl:1: grade 3 is outside of the scale 0..2" in str(raised.value)
    assert "jsonl:3: expected an integer grade or one of irrelevant, weak, strong" in str(raised.value)


class Teacher:
    def __init__(self, rows: list[list[float]], scale: RelevanceScale = SCALE) -> None:
        self.rows, self.scale = np.array(rows), scale

    def score_pairs(self, pairs: Sequence[tuple[str, Any]]) -> PairScores:
        p = self.rows[[int(query.split()[1]) for query, _ in pairs]]
        n = len(p)
        return PairScores(np.log(p).astype(np.float32), p, p @ [0, 1, 2], p.argmax(1), None, None, np.zeros(n, bool))


FIRST = Teacher([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
SECOND = Teacher([[0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])


def test_one_teachers_labels_stay_soft(tmp_path: Path) -> None:
    found = label_with_teachers(pairs_of(3), [FIRST], SCALE)
    assert [pair.probabilities for pair in found.pairs] == [tuple(row) for row in FIRST.rows.tolist()]
    assert found.disagreed == []
    path = tmp_path / "soft.jsonl"
    write_annotations(path, [Annotation(pair, 50.0, [1 / 3] * 3) for pair in found.pairs])
    for pair, row in zip(read_annotations(path, SCALE), FIRST.rows, strict=True):
        assert pair.grade is None
        assert pair.probabilities == pytest.approx(row, abs=1e-6)


def test_several_teachers_must_agree() -> None:
    found = label_with_teachers(pairs_of(3), [FIRST, SECOND], SCALE)
    assert [pair.qid for pair in found.pairs] == ["q0"]
    assert found.pairs[0].probabilities == pytest.approx((0.6, 0.3, 0.1))
    assert found.disagreed == [1, 2]
    assert label_with_teachers(pairs_of(3), [FIRST, SECOND], SCALE, tolerance=1).disagreed == [2]


def test_a_teacher_of_another_scale_is_refused() -> None:
    other = Teacher([[0.5, 0.5]], RelevanceScale.named("binary"))
    with pytest.raises(InputError, match="teacher 2 grades on irrelevant, relevant; the model needs irrelevant, weak"):
        label_with_teachers(pairs_of(1), [FIRST, other], SCALE)
    with pytest.raises(InputError, match="at least one teacher"):
        label_with_teachers(pairs_of(1), [], SCALE)
