"""`darl-rerank evaluate --pairs`: a model on graded pairs, as table, JSON and HTML report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from .terminal import print_json, print_table

log = logging.getLogger(__name__)


_BLOCK = 512


def evaluate_model_on_pairs(
    path: Path, *, reference: str | None, report: Path | None, as_json: bool, seed: int, model: dict[str, Any]
) -> None:
    """Judge the pairs of a file and print (and with `report` draw) all measures.

    Raises:
        InputError: `report` is a folder or the file itself, or see `read_graded_pairs` and `evaluate_pairs`.
    """
    import numpy as np

    from ..evaluation.pairs import ALL, evaluate_pairs
    from ..evaluation.report import write_report
    from ..files import check_output_file, check_outputs_apart
    from ..progress import progress_bar
    from ..trec.graded_pairs import read_graded_pairs
    from .options import load_reranker

    if report is not None:
        check_output_file(report)
        check_outputs_apart([report], [path])
    reranker = load_reranker(**model)
    names = tuple(grade.name for grade in reranker.scale.grades)
    pairs = read_graded_pairs(path, grades=len(names), names=names)
    soft = sum(pair.probabilities is not None for pair in pairs)
    if soft:
        log.info(f"Note: {soft} soft labels count as their most probable grade")
    probabilities, novelty, given = [], [], []
    with progress_bar("judging", len(pairs), unit="pair") as bar:
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            scores = reranker.score_pairs([(pair.query, pair.document) for pair in block])
            probabilities.append(scores.probabilities)
            given.append(scores.grade)
            if scores.novelty is not None:
                novelty.append(scores.novelty)
            bar.update(len(block))
    strange = np.concatenate(novelty) if novelty else None
    groups = np.array([pair.group or ALL for pair in pairs])
    result = evaluate_pairs(
        np.array([pair.hard_grade for pair in pairs]),
        np.concatenate(probabilities),
        reranker.scale.gains,
        np.array([pair.qid for pair in pairs]),
        groups=groups,
        novelty_scores=strange,
        reference=reference,
        predicted=np.concatenate(given),
        names=names,
        seed=seed,
    )
    if report is not None:
        facts = {
            "model": str(model.get("model") or "the bundled checkpoint") + f" ({reranker.checkpoint.base.name})",
            "engine": f"{reranker.engine.name}, {reranker.engine.precision}",
            "data": path.name,
            "novelty": "measured" if strange is not None else "not measured: the checkpoint has no statistics for it",
        }
        write_report(report, result, names, facts=facts, novelty=strange, groups=groups)
        log.info(f"{report}: report written")
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    groups, reference = result["groups"], result["reference"]
    header = ["measure", *groups, *(f"{group} - {reference}" for group in result["gaps"])]
    rows = [["pairs", *(str(v["pairs"]) for v in groups.values()), *("" for _ in result["gaps"])]]
    for name in groups[reference]["measures"]:
        cells = [_interval(v["measures"][name], "") for v in groups.values()]
        rows.append([name, *cells, *(_interval(v[name], "+") for v in result["gaps"].values())])
    for group, values in result["novelty"].items():
        for name, value in values.items():
            cells = [_interval(value, "") if other == group else "" for other in groups]
            rows.append([f"novelty {name}", *cells, *("" for _ in result["gaps"])])
    print_table(header, rows)


def _interval(value: dict[str, float | None], sign: str) -> str:
    if value["value"] is None:
        return "-"
    ends = "" if value["low"] is None else f" [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"
    return f"{value['value']:{sign}.4f}{ends}"
