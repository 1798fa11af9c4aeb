"""Relevance judgements: `qid 0 docid grade`."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..errors import InputError
from .lines import Faults, read_lines

# For each query the grade of each judged document.
Qrels = dict[str, dict[str, int]]


def read_qrels(path: str | Path) -> Qrels:
    """Read qrels; plain or gzip. Of a pair judged twice the higher grade counts, with a warning that says how many.

    Raises:
        InputError: an empty file, a line without four columns, or a grade that is not an integer.
    """
    faults = Faults(path)
    conflicts = 0
    qrels: Qrels = {}
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 4:
            faults.add(number, f"expected 4 columns (qid 0 docid grade), found {len(columns)}")
            continue
        qid, _, docid, written = columns
        try:
            grade = int(written)
        except ValueError:
            faults.add(number, f"expected an integer grade, found {written!r}")
            continue
        known = qrels.setdefault(qid, {}).setdefault(docid, grade)
        conflicts += known != grade
        qrels[qid][docid] = max(known, grade)
    faults.check()
    if not qrels:
        raise InputError("the qrels are empty", path=path)
    if conflicts:
        warnings.warn(
            f"{path}: {conflicts} pairs are judged twice with different grades; the higher counts", stacklevel=2
        )
    return qrels
