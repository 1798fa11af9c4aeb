"""Ranking measures by ir-measures, whose values are trec_eval's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependencyError
from ..trec.qrels import Qrels
from ..trec.runs import Run

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP", "R@100")


@dataclass(frozen=True, slots=True)
class RankingScores:
    """The measures of one run.

    Attributes:
        qids: the queries averaged over: all that have judgements.
        per_query: for each measure its value for each query, shape (queries,).
        absent: judged queries that the run lacks; each counts as 0 (`trec_eval -c`), so that a run can't gain by
            leaving out what it finds hard.
        unjudged: queries of the run that have no judgements and are left out.
    """

    qids: tuple[str, ...]
    per_query: dict[str, NDArray[np.float64]]
    absent: int
    unjudged: int

    def mean(self, measure: str) -> float:
        return float(self.per_query[measure].mean())


def evaluate_run(qrels: Qrels, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> RankingScores:
    """Evaluate a run.

    Args:
        qrels: grades; a grade of 1 or more is relevant for binary measures unless the measure says otherwise, as in
            "AP(rel=2)@100".
        run: documents with scores; order is trec_eval's (32-bit score, then docid, both descending).
        measures: names as ir-measures reads them, e.g. "nDCG@10", "RR@10", "AP", "R@100".

    Raises:
        InputError: a measure that is unknown, or that ir-measures can't compute here, or no query of the run is judged.
        MissingDependencyError: ir-measures is not installed.
    """
    ir_measures = _ir_measures()
    parsed = {name: _parse(ir_measures, name) for name in dict.fromkeys(measures)}
    scores = {qid: {entry.docid: entry.score for entry in entries} for qid, entries in run.items()}
    if not scores.keys() & qrels.keys():
        raise InputError("no query of the run is in the qrels: are they of the same collection?")
    qids = tuple(sorted(qrels))
    place = {qid: i for i, qid in enumerate(qids)}
    found = {measure: np.zeros(len(qids)) for measure in parsed.values()}
    try:
        for value in _evaluator(ir_measures, list(found), qrels).iter_calc(scores):
            found[value.measure][place[value.query_id]] = value.value
    except ZeroDivisionError as error:  # as Accuracy, where a query has no irrelevant document
        raise InputError(f"ir-measures divides by zero for this run in one of {', '.join(parsed)}") from error
    # One measure may go by two names, as MRR@10 and RR@10.
    per_query = {name: found[measure] for name, measure in parsed.items()}
    return RankingScores(
        qids, per_query, absent=len(qrels.keys() - run.keys()), unjudged=len(run.keys() - qrels.keys())
    )


def ndcg(qrels: Qrels, scores: Mapping[str, Mapping[str, float]], cutoff: int = 10) -> dict[str, float]:
    """nDCG at `cutoff` of each judged query, from plain score mappings."""
    ir_measures = _ir_measures()
    measure = _parse(ir_measures, f"nDCG@{cutoff}")
    return {value.query_id: float(value.value) for value in _evaluator(ir_measures, [measure], qrels).iter_calc(scores)}


def _parse(ir_measures: Any, name: str) -> Any:
    try:
        measure = ir_measures.parse_measure(name)
    except (ValueError, NameError, AttributeError, KeyError, SyntaxError) as error:
        raise InputError(
            f"unknown measure {name!r}; examples: {', '.join(DEFAULT_MEASURES)}, P@5, Judged@10"
        ) from error
    missing = [key for key, info in measure.SUPPORTED_PARAMS.items() if info.required and key not in measure.params]
    if missing:
        raise InputError(f"measure {name!r} needs {', '.join(missing)}; a cutoff is written as in P@5")
    try:
        measure.validate_params()
    except AssertionError as error:
        raise InputError(f"measure {name!r}: {error}") from error
    # trec_eval ends the whole process at a cutoff of 0.
    for parameter in ("cutoff", "rel"):
        if measure.params.get(parameter, 1) < 1:
            raise InputError(f"measure {name!r}: {parameter} must be at least 1")
    return measure


def _evaluator(ir_measures: Any, measures: list[Any], qrels: Qrels) -> Any:
    try:
        return ir_measures.evaluator(measures, qrels)
    except ValueError as error:  # what its provider needs is not installed, or one of its parameters is missing
        raise InputError(" ".join(str(error).split())) from error


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError("ir-measures", "eval") from error
    return ir_measures
