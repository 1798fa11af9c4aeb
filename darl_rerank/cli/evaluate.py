"""`darl-rerank evaluate`: ranking measures of runs side by side, or a model on graded pairs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import model_options
from .terminal import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..evaluation.ranking import RankingScores


log = logging.getLogger(__name__)


@click.command()
@click.argument("qrels", type=click.Path(path_type=Path), required=False)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-m", "--measure", "measures", multiple=True, help="As ir-measures names it; may be given several times.")
@click.option("--per-query", is_flag=True, help="Also the value of every query.")
@click.option("--seed", default=0, show_default=True, help="Of paired tests and bootstrap.")
@json_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", hidden=True)
@click.option("--pairs", type=click.Path(path_type=Path), help="JSONL of graded pairs to judge with --model.")
@click.option("--reference", help="With --pairs: the group others are compared with.  [default: the first]")
@click.option("--report", type=click.Path(path_type=Path), help="With --pairs: an HTML report to write.")
@model_options
def evaluate(
    qrels: Path | None,
    runs: tuple[Path, ...],
    measures: tuple[str, ...],
    per_query: bool,
    seed: int,
    as_json: bool,
    form: str,
    pairs: Path | None,
    reference: str | None,
    report: Path | None,
    **model: Any,
) -> None:
    """Evaluate RUNS against QRELS, as trec_eval would; or, with --pairs, a model on graded pairs.

    With several runs, each is compared with the first: mean difference with its 95 % bootstrap interval, and the
    p-value of a paired randomisation test, corrected by Holm over all runs and measures.

    --pairs takes JSONL of query, document, grade and (if you like) group, and measures ranking, grades, calibration
    and novelty in each group with 95 % intervals, and the gaps between groups.
    """
    # What --json was called before all commands had it.
    as_json = as_json or form == "json"
    if pairs is not None:
        from .pairs_evaluation import evaluate_model_on_pairs

        if qrels is not None or measures or per_query:
            raise click.UsageError("--pairs stands alone: give no QRELS, RUNS, --measure or --per-query beside it")
        evaluate_model_on_pairs(pairs, reference=reference, report=report, as_json=as_json, seed=seed, model=model)
        return
    if report is not None or reference is not None:
        raise click.UsageError("--report and --reference need --pairs")
    if qrels is None:
        raise click.UsageError("give QRELS and RUNS, or --pairs")
    from ..evaluation.ranking import DEFAULT_MEASURES, evaluate_run
    from ..trec.qrels import read_qrels
    from ..trec.runs import read_run

    if not runs:
        raise click.UsageError("give at least one run")
    judged = read_qrels(qrels)
    names = list(dict.fromkeys(measures or DEFAULT_MEASURES))
    scores = [evaluate_run(judged, read_run(run), names) for run in runs]
    for run, result in zip(runs, scores, strict=True):
        if result.absent:
            log.warning(f"{run} lacks {result.absent} judged queries; each counts as 0")
        if result.unjudged:
            log.warning(f"{run} has {result.unjudged} queries without judgements; left out")
    comparisons = _compare(scores, names, seed)
    if as_json:
        print_json(_as_json(runs, scores, comparisons, names, per_query))
    else:
        _print_tables(runs, scores, comparisons, names, per_query)


def _compare(scores: list[RankingScores], names: list[str], seed: int) -> list[dict[str, dict[str, float]]]:
    """For each run after the first and each measure: difference from the first, interval, p and corrected p."""
    from ..evaluation.significance import holm, paired_test

    first = scores[0]
    tests = [
        (i, name, paired_test(score.per_query[name], first.per_query[name], seed=seed))
        for i, score in enumerate(scores[1:])
        for name in names
    ]
    result: list[dict[str, dict[str, float]]] = [{} for _ in scores[1:]]
    for (i, name, test), corrected in zip(tests, holm([test.p for *_, test in tests]), strict=True):
        result[i][name] = {
            "difference": test.difference,
            "low": test.low,
            "high": test.high,
            "p": test.p,
            "p_holm": corrected,
            "wins": test.wins,
            "losses": test.losses,
        }
    return result


def _as_json(
    runs: tuple[Path, ...],
    scores: list[RankingScores],
    comparisons: list[dict[str, dict[str, float]]],
    names: list[str],
    per_query: bool,
) -> list[dict[str, Any]]:
    rows = []
    for i, (run, score) in enumerate(zip(runs, scores, strict=True)):
        row: dict[str, Any] = {"run": str(run), "queries": len(score.qids)}
        row["mean"] = {name: score.mean(name) for name in names}
        if i:
            row["against_first"] = comparisons[i - 1]
        if per_query:
            row["per_query"] = {
                qid: {name: float(score.per_query[name][q]) for name in names} for q, qid in enumerate(score.qids)
            }
        rows.append(row)
    return rows


def _print_tables(
    runs: tuple[Path, ...],
    scores: list[RankingScores],
    comparisons: list[dict[str, dict[str, float]]],
    names: list[str],
    per_query: bool,
) -> None:
    rows = [[run.name, *(f"{score.mean(name):.4f}" for name in names)] for run, score in zip(runs, scores, strict=True)]
    print_table(["run", *names], rows)
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        rows = [
            [name, f"{c['difference']:+.4f}", f"[{c['low']:+.4f}, {c['high']:+.4f}]", f"{c['p_holm']:.4f}",
             f"{c['wins']}/{c['losses']}"]
            for name, c in comparison.items()
        ]  # fmt: skip
        click.echo()
        header = ["difference", "95 % interval", "p (Holm)", "better/worse"]
        print_table([f"{run.name} - {runs[0].name}", *header], rows)
    for name in names if per_query else ():
        click.echo()
        values = [score.per_query[name] for score in scores]
        rows = [[qid, *(f"{value[q]:.4f}" for value in values)] for q, qid in enumerate(scores[0].qids)]
        print_table([name, *(run.name for run in runs)], rows)
