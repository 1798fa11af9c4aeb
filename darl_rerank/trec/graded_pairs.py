"""Graded pairs: queries with documents and their grades, as JSON lines or as topics, corpus and qrels.

One line of the JSONL form:

    {"query": "laptop", "document": "Dell XPS 13 notebook", "grade": 2}

`document` may also be `{"title": …, "text": …}`. Instead of `grade` there may be `probabilities`, one for each grade
of the scale (a soft label). Optional: `qid` and `docid`, and `group`, the name of the split or domain that measures are
reported for. Other fields are left alone, so an annotation file is a file of graded pairs as soon as it is filled in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import clean_text, docid_and_text
from ..errors import InputError
from .corpora import load_documents
from .lines import Faults, json_object, read_lines
from .qrels import read_qrels
from .topics import read_topics


@dataclass(frozen=True, slots=True)
class GradedPair:
    """A query with a document, and its label if it has one.

    Attributes:
        query: its text.
        document: its text, the title (if any) on the first line.
        grade: 0..K-1 on the model's scale; None if unlabelled or if the label is soft.
        probabilities: soft label, one probability a grade, summing to 1; None for a hard label.
        qid: query id; the query's text where the file gives none, so that equal queries are one query.
        docid: document id, if the file gives one.
        group: name of the split or domain, if the file gives one.
        line: the line of the file it came from, counted from 1; 0 if from elsewhere.
    """

    query: str
    document: str
    grade: int | None
    probabilities: tuple[float, ...] | None
    qid: str
    docid: str | None = None
    group: str | None = None
    line: int = 0

    @property
    def labelled(self) -> bool:
        return self.grade is not None or self.probabilities is not None

    @property
    def hard_grade(self) -> int | None:
        """The grade, or the most probable one of a soft label (the lowest of equals); None if unlabelled."""
        if self.probabilities is not None:
            return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)
        return self.grade

    @property
    def key(self) -> tuple[str, str]:
        """What makes two pairs the same pair: both texts, without regard to case and white space."""
        return _folded(self.query), _folded(self.document)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def read_graded_pairs(
    path: str | Path,
    *,
    grades: int | None = None,
    grade_map: Mapping[str, int] | None = None,
    names: tuple[str, ...] = (),
    labels: str = "required",
) -> list[GradedPair]:
    """Read graded pairs from JSON lines, plain or gzip; see the module for the fields.

    Args:
        path: the file.
        grades: number of grades K of the model's scale.
        grade_map: the file's grades (as text: "2", "good") onto the model's, all of them; without it a grade must be
            an integer 0..K-1, or one of `names`.
        names: names of the model's grades, lowest first, which a line may give instead of a number.
        labels: "required"; "optional", where `grade` may be absent or null; or "ignored", for a pool.

    Raises:
        InputError: no such file, no pairs in it, or faulty lines; all of them are reported together.
    """
    return list(iterate_graded_pairs(path, grades=grades, grade_map=grade_map, names=names, labels=labels))


def iterate_graded_pairs(
    path: str | Path,
    *,
    grades: int | None = None,
    grade_map: Mapping[str, int] | None = None,
    names: tuple[str, ...] = (),
    labels: str = "required",
) -> Iterator[GradedPair]:
    """`read_graded_pairs`, pair by pair: for files that don't fit into memory. Faults are raised at the end."""
    if labels not in ("required", "optional", "ignored"):
        raise InputError(f"labels must be required, optional or ignored, got {labels!r}")
    faults = Faults(path)
    reader = _PairReader(faults, grades, grade_map, names, labels)
    number = 0
    for number, line in read_lines(path):
        pair = reader.read(number, line)
        if pair is not None:
            yield pair
    faults.check()
    if number == 0:
        raise InputError("there are no pairs", path=path)


class _PairReader:
    """Turns lines into pairs; what is wrong with them goes to `faults`."""

    def __init__(
        self,
        faults: Faults,
        grades: int | None,
        grade_map: Mapping[str, int] | None,
        names: tuple[str, ...],
        labels: str,
    ) -> None:
        self.faults, self.grades, self.grade_map, self.labels = faults, grades, grade_map, labels
        self.names = {name.casefold(): k for k, name in enumerate(names)}
        # Query ids are few beside pairs; two texts under one id would put one query into two splits.
        self.text_of: dict[str, int] = {}

    def read(self, number: int, line: str) -> GradedPair | None:
        values = json_object(line, number, self.faults)
        if values is None:
            return None
        found: list[str] = []
        query = values.get("query")
        if not isinstance(query, str) or not query.strip():
            found.append(f"expected query to be a text that is not empty, found {_shown(query)}")
        docid, document = None, ""
        if "document" not in values:
            found.append(f"expected a document; the line has {', '.join(values) or 'nothing'}")
        else:
            try:
                docid, document = docid_and_text(values["document"])
            except InputError as error:
                found.append(str(error))
        grade, probabilities = self._label(values, found)
        for name in ("qid", "docid", "group"):
            if not isinstance(values.get(name), str | int | None):
                found.append(f"expected {name} to be a string, found {_shown(values[name])}")
        if not found:
            text = clean_text(str(query)).strip()
            qid = text if values.get("qid") is None else clean_text(str(values["qid"]))
            if self.text_of.setdefault(qid, hash(text)) != hash(text):
                found.append(f"query id {qid} already stands for another query")
        if found:
            for message in found:
                self.faults.add(number, message)
            return None
        docid = docid if values.get("docid") is None else clean_text(str(values["docid"]))
        group = None if values.get("group") is None else clean_text(str(values["group"]))
        return GradedPair(text, document, grade, probabilities, qid, docid, group, number)

    def _label(self, values: Mapping[str, Any], found: list[str]) -> tuple[int | None, tuple[float, ...] | None]:
        grade, soft = values.get("grade"), values.get("probabilities")
        if self.labels == "ignored":
            return None, None
        if grade is not None and soft is not None:
            found.append("expected grade or probabilities, found both")
        elif grade is not None:
            try:
                return read_grade(grade, grades=self.grades, grade_map=self.grade_map, names=self.names), None
            except InputError as error:
                found.append(str(error))
        elif soft is not None:
            fault = _soft_fault(soft, self.grades)
            if fault is None:
                return None, tuple(float(p) for p in soft)
            found.append(fault)
        elif self.labels == "required":
            found.append("expected a grade (or probabilities), found none")
        return None, None


def read_grade(
    value: Any,
    *,
    grades: int | None = None,
    grade_map: Mapping[str, int] | None = None,
    names: Mapping[str, int] | None = None,
) -> int:
    """The grade on the model's scale that `value` stands for.

    Args:
        value: an integer, or a text that `grade_map` or `names` knows.
        grades: number of grades K.
        grade_map: every grade that may occur, as text, with the model's grade; it wins over all else.
        names: the model's grade names, lower case, with their grades.

    Raises:
        InputError: off the scale, not in the map, or not a grade at all.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"expected a grade, found {_shown(value)}")
    if grade_map is not None:
        if str(value) not in grade_map:
            raise InputError(f"grade {value!r} is not in the grade map, which has {', '.join(grade_map)}")
        return grade_map[str(value)]
    if isinstance(value, str):
        text = value.strip().casefold()
        if names and text in names:
            return names[text]
        try:
            value = int(text)
        except ValueError:
            known = f" or one of {', '.join(names)}" if names else ""
            raise InputError(f"expected an integer grade{known}, found {value!r:.60}") from None
    if value < 0 or (grades is not None and value >= grades):
        scale = f"0..{grades - 1}" if grades is not None else "0 and up"
        raise InputError(f"grade {value} is outside of the scale {scale}; a grade map can bring it onto the scale")
    return int(value)


def _soft_fault(soft: Any, grades: int | None) -> str | None:
    numbers = isinstance(soft, list) and all(isinstance(p, int | float) and not isinstance(p, bool) for p in soft)
    if not numbers or len(soft) < 2 or (grades is not None and len(soft) != grades):
        return f"expected {grades or 'at least 2'} probabilities, one for each grade, found {_shown(soft)}"
    if not all(math.isfinite(p) and p >= 0 for p in soft) or abs(sum(soft) - 1) > 1e-3:
        return f"expected probabilities >= 0 that sum to 1, found {_shown(soft)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def pairs_from_qrels(
    topics: str | Path,
    corpus: str | Path,
    qrels: str | Path,
    *,
    grades: int | None = None,
    grade_map: Mapping[str, int] | None = None,
    group: str | None = None,
    partial: bool = False,
) -> list[GradedPair]:
    """Every judged pair of a TREC collection, in the order of the qrels.

    Args:
        topics, corpus, qrels: files as `read_topics`, `read_corpus` and `read_qrels` take them.
        grades: number of grades K of the model's scale.
        grade_map: the qrels' grades (as text) onto the model's, all of them; without it they must be 0..K-1.
        group: the group of all pairs.
        partial: leave out pairs whose query or document is not at hand: topics and corpus may be a part of the
            collection.

    Raises:
        InputError: a grade off the scale or, unless `partial`, a judged query without a topic, or a judged document
            that is not in the corpus or is empty there; with the lines at fault.
    """
    queries = read_topics(topics)
    judged = read_qrels(qrels)
    documents = load_documents(corpus, {docid for grades_of in judged.values() for docid in grades_of})
    faults = Faults(qrels)
    pairs: list[GradedPair] = []
    for number, line in read_lines(qrels):
        qid, _, docid, written = line.split()
        try:
            grade = read_grade(int(written), grades=grades, grade_map=grade_map)
        except InputError as error:
            faults.add(number, str(error))
            continue
        # Of a pair judged twice read_qrels has taken the higher grade; it stands where that grade stands.
        if judged.get(qid, {}).get(docid) != int(written):
            continue
        del judged[qid][docid]
        document = documents.get(docid)
        if partial and (qid not in queries or document is None or not document.full_text):
            continue
        if qid not in queries:
            faults.add(number, f"query {qid} has no topic in {topics}")
        elif document is None or not document.full_text:
            faults.add(number, f"document {docid} is {'not' if document is None else 'empty'} in {corpus}")
        else:
            pairs.append(GradedPair(queries[qid], document.full_text, grade, None, qid, docid, group, number))
    faults.check()
    return pairs
