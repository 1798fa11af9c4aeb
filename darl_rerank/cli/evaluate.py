"""`darl-rerank evaluate`: ranking measures of runs side by side, or a model on graded pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import model_options

if TYPE_CHECKING:
    from ..evaluation.ranking import RankingScores


@click.command()
@click.argument("qrels", type=click.Path(path_type=Path), required=False)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("-m", "--measure", "measures", multiple=True, help="As ir-measures names it; may be given several times.")
@click.option("--per-query", is_flag=True, help="Also the value of every query.")
@click.option("--seed", default=0, show_default=True, help="Of paired tests and bootstrap.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
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
    if pairs is not None:
        from .pairs_evaluation import evaluate_model_on_pairs

        if qrels is not None or measures or per_query:
            raise click.UsageError("--pairs stands alone: give no QRELS, RUNS, --measure or --per-query beside it")
        evaluate_model_on_pairs(pairs, reference=reference, report=report, form=form, seed=seed, model=model)
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
            click.echo(f"Warning: {run} lacks {result.absent} judged queries; each counts as 0", err=True)
        if result.unjudged:
            click.echo(f"Warning: {run} has {result.unjudged} queries without judgements; left out", err=True)
    comparisons = _compare(scores, names, seed)
    if form == "json":
        click.echo(json.dumps(_as_json(runs, scores, comparisons, names, per_query), indent=2))
    else:
        click.echo(_as_table(runs, scores, comparisons, names, per_query))


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


def _as_table(
    runs: tuple[Path, ...],
    scores: list[RankingScores],
    comparisons: list[dict[str, dict[str, float]]],
    names: list[str],
    per_query: bool,
) -> str:
    header = ["run", *names]
    rows = [[run.name, *(f"{score.mean(name):.4f}" for name in names)] for run, score in zip(runs, scores, strict=True)]
    blocks = [_aligned([header, *rows])]
    for run, comparison in zip(runs[1:], comparisons, strict=True):
        lines = [[f"{run.name} - {runs[0].name}", "difference", "95 % interval", "p (Holm)", "better/worse"]]
        for name, c in comparison.items():
            interval = f"[{c['low']:+.4f}, {c['high']:+.4f}]"
            lines.append(
                [name, f"{c['difference']:+.4f}", interval, f"{c['p_holm']:.4f}", f"{c['wins']}/{c['losses']}"]
            )
        blocks.append(_aligned(lines))
    if per_query:
        for name in names:
            lines = [[name, *(run.name for run in runs)]]
            for q, qid in enumerate(scores[0].qids):
                lines.append([qid, *(f"{score.per_query[name][q]:.4f}" for score in scores)])
            blocks.append(_aligned(lines))
    return "\n\n".join(blocks)


def _aligned(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
