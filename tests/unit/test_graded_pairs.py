"""Reading graded pairs from JSON lines and from topics, corpus and qrels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from darl_rerank.errors import InputError
from darl_rerank.trec.graded_pairs import pairs_from_qrels, read_grade, read_graded_pairs


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def test_hard_and_soft_labels(tmp_path: Path) -> None:
    path = written(
        tmp_path / "pairs.jsonl",
        {"query": " laptop ", "document": {"title": "Dell", "text": "XPS 13"}, "grade": 2, "group": "near"},
        {"query": "laptop", "document": "hose", "probabilities": [0.9, 0.1, 0], "qid": 7, "docid": "d2", "note": 1},
    )
    hard, soft = read_graded_pairs(path, grades=3)
    assert (hard.query, hard.document, hard.grade, hard.probabilities) == ("laptop", "Dell\nXPS 13", 2, None)
    assert (hard.qid, hard.docid, hard.group, hard.line) == ("laptop", None, "near", 1)
    assert (soft.grade, soft.probabilities, soft.hard_grade) == (None, (0.9, 0.1, 0.0), 0)
    assert (soft.qid, soft.docid, soft.line) == ("7", "d2", 2)


def test_every_fault_is_reported_with_its_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "pairs.jsonl",
        {"query": "q", "document": "d", "grade": 3},
        {"query": "", "document": "d", "grade": 0},
        {"query": "q", "grade": 1},
        {"query": "q", "document": "d"},
        {"query": "q", "document": "d", "probabilities": [0.5, 0.6, 0.1]},
        {"query": "q", "document": "d", "grade": True},
        "not json",
        {"query": "q", "document": {"title": "", "text": " "}, "grade": 1},
        {"query": "other", "document": "d", "grade": 1, "qid": "a"},
        {"query": "another", "document": "d", "grade": 1, "qid": "a"},
    )
    with pytest.raises(InputError) as raised:
        read_graded_pairs(path, grades=3)
    lines = str(raised.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3", "4", "5", "6", "7", "8", "10"]
    assert "grade 3 is outside of the scale 0..2" in lines[0]
    assert "sum to 1" in lines[4]
    assert "already stands for another query" in lines[8]


def test_grades_may_be_mapped_or_named(tmp_path: Path) -> None:
    named = written(
        tmp_path / "named.jsonl",
        {"query": "q", "document": "a", "grade": "Strong"},
        {"query": "q", "document": "b", "grade": "0"},
    )
    assert [p.grade for p in read_graded_pairs(named, grades=3, names=("irrelevant", "weak", "strong"))] == [2, 0]
    mapped = {"Strong": 1, "0": 0}
    assert [p.grade for p in read_graded_pairs(named, grades=2, grade_map=mapped)] == [1, 0]
    with pytest.raises(InputError, match=r"named.jsonl:2: grade '0' is not in the grade map"):
        read_graded_pairs(named, grades=2, grade_map={"Strong": 1})


def test_labels_may_be_absent_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(
        tmp_path / "pairs.jsonl",
        {"query": "q", "document": "a", "grade": None},
        {"query": "q", "document": "b", "grade": 99},
    )
    assert [p.labelled for p in read_graded_pairs(path, labels="optional", grades=100)] == [False, True]
    assert [p.labelled for p in read_graded_pairs(path, labels="ignored", grades=2)] == [False, False]
    with pytest.raises(InputError, match="there are no pairs"):
        read_graded_pairs(written(tmp_path / "empty.jsonl"))


def test_pairs_of_a_trec_collection(tmp_path: Path) -> None:
    topics = written(tmp_path / "topics.tsv", "q1\tlaptop", "q2\those")
    corpus = written(tmp_path / "corpus.jsonl", {"id": "d1", "title": "Dell", "text": "XPS"}, {"id": "d2", "text": ""})
    qrels = written(tmp_path / "qrels", "q1 0 d1 1", "q1 0 d1 1")
    (pair,) = pairs_from_qrels(topics, corpus, qrels, grades=2, group="ID")
    assert (pair.query, pair.document, pair.grade, pair.qid, pair.docid) == ("laptop", "Dell\nXPS", 1, "q1", "d1")
    assert pair.group == "ID"

    faulty = written(tmp_path / "faulty", "q1 0 d1 5", "q3 0 d1 1", "q1 0 d2 0", "q1 0 d9 0", "q2 0 d1 -1")
    with pytest.raises(InputError) as raised:
        pairs_from_qrels(topics, corpus, faulty, grades=2)
    lines = str(raised.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3", "4", "5"]
    mapped = {"5": 1, "1": 1, "0": 0, "-1": 0}
    with pytest.raises(InputError, match=r"faulty:2: query q3 has no topic"):
        pairs_from_qrels(topics, corpus, faulty, grades=2, grade_map=mapped)


@pytest.mark.parametrize("text", ["+-3", "9" * 5000, "²", "", "1.0"])
def test_a_text_that_is_no_number_is_no_grade(text: str) -> None:
    with pytest.raises(InputError, match="expected an integer grade"):
        read_grade(text)
