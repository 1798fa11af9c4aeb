"""Runs: `qid Q0 docid rank score tag`, read as trec_eval reads them and written so that it reads them back in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_write
from .lines import Faults, read_lines


@dataclass(frozen=True, slots=True)
class RunEntry:
    """One retrieved document."""

    docid: str
    score: float


# For each query, in the file's order, its documents in rank order.
Run = dict[str, list[RunEntry]]

# Beyond, a score is infinite to trec_eval.
_LARGEST = float(np.finfo(np.float32).max)


def read_run(path: str | Path) -> Run:
    """Read a run; documents come in trec_eval's order.

    trec_eval ignores the rank column: it orders by score (kept as a 32-bit float), then by docid, both descending.

    Raises:
        InputError: an empty file, a line without six columns, a score that is not a finite number, or a document that
            is listed twice for a query; all such lines are reported together.
    """
    faults = Faults(path)
    run = parse_run(read_lines(path), faults)
    faults.check()
    if not run:
        raise InputError("the run is empty", path=path)
    return run


def parse_run(lines: Iterable[tuple[int, str]], faults: Faults) -> Run:
    """The run that numbered lines hold, as `read_run` reads it; lines that are none are noted in `faults`."""
    found: dict[str, dict[str, float]] = {}
    for number, line in lines:
        columns = line.split()
        if len(columns) != 6:
            faults.add(number, f"expected 6 columns (qid Q0 docid rank score tag), found {len(columns)}")
            continue
        qid, _, docid, _, written, _ = columns
        try:
            score = float(written)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            faults.add(number, f"expected a finite number as score, found {written!r}")
        elif docid in found.setdefault(qid, {}):
            faults.add(number, f"document {docid} is listed twice for query {qid}")
        else:
            found[qid][docid] = score
    return {qid: in_trec_order(scores) for qid, scores in found.items()}


def in_trec_order(scores: Mapping[str, float]) -> list[RunEntry]:
    """Documents as trec_eval ranks them: 32-bit score, then docid, both descending."""
    ordered = sorted(scores.items(), key=lambda item: (float(np.float32(item[1])), item[0]), reverse=True)
    return [RunEntry(docid, score) for docid, score in ordered]


def in_given_order(rankings: Mapping[str, Iterable[str]]) -> Run:
    """A run of document ids, best first, with ranks for scores: equal scores trec_eval would order by docid."""
    return {qid: [RunEntry(docid, -float(rank)) for rank, docid in enumerate(ids, 1)] for qid, ids in rankings.items()}


def write_run(path: str | Path, rankings: Mapping[str, Sequence[tuple[str, float | None]]], tag: str) -> None:
    """Write a run whose order every reader sees alike.

    Scores are written with six decimals. Where two neighbours would come out equal, as text or as trec_eval's 32-bit
    float, the lower one is moved down by just enough to stay below; the order given is the order read back.

    Args:
        path: where to.
        rankings: for each query its documents with scores, best first; None is the score of one that was not judged.
        tag: the run's name, the last column.

    Raises:
        InputError: an id or the tag is empty or contains white space, or a score that no run can hold.
    """
    check_word("tag", tag)
    with atomic_write(path) as stream:
        for qid, ranking in rankings.items():
            stream.write(run_lines(qid, ranking, tag))


def run_lines(qid: str, ranking: Sequence[tuple[str, float | None]], tag: str) -> str:
    """The lines of one query, as `write_run` writes them.

    Raises:
        InputError: as `write_run`.
    """
    check_word("query id", qid)
    lines = []
    texts = strictly_decreasing([score for _, score in ranking])
    for rank, ((docid, _), text) in enumerate(zip(ranking, texts, strict=True), 1):
        check_word("document id", docid)
        lines.append(f"{qid} Q0 {docid} {rank} {text} {tag}\n")
    return "".join(lines)


def strictly_decreasing(scores: Sequence[float | None]) -> list[str]:
    """The scores with six decimals, each below the one before it as text and as a 32-bit float.

    Args:
        scores: in the order wanted; None takes a place just below the one before it, or 0 if it is first.

    Raises:
        InputError: a score that is no number, or too large for a 32-bit float.
    """
    texts: list[str] = []
    last = np.float32(math.inf)
    for score in scores:
        if score is not None and not abs(score) <= _LARGEST:
            raise InputError(f"the score {score!r} can't stand in a run: expected a finite number within 32-bit floats")
        value = score if score is not None else float(last) if math.isfinite(last) else 0.0
        if np.float32(f"{value:.6f}") >= last:
            # One step of the text, or one of the 32-bit float where that is coarser than the text.
            step = max(1e-6, abs(float(np.spacing(last))))
            value = float(last) - step
            while np.float32(f"{value:.6f}") >= last:
                value -= step
        texts.append(f"{value:.6f}")
        last = np.float32(texts[-1])
    return texts


def check_word(what: str, text: str) -> None:
    """Raise InputError if `text`, which is the run's `what`, can't be a column of a run."""
    if not text or text.split() != [text]:
        raise InputError(f"{what} {text!r} can't stand in a run: expected one word without white space")
