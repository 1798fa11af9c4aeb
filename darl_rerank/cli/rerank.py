"""`darl-rerank rerank`: a TREC run in, a reranked run out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import (
    Place,
    PlaceParameter,
    budget_option,
    depth_or_auto,
    exit_option,
    model_options,
    ray_options,
    rule_options,
)
from .terminal import json_option, print_json

if TYPE_CHECKING:
    from ..offline import Choices, Missing, RunReport

    Depth = int | Literal["auto"]


log = logging.getLogger(__name__)


@click.command()
@click.argument("run", type=PlaceParameter())
@click.argument("topics", type=PlaceParameter())
@click.argument("output", type=PlaceParameter())
@click.option(
    "--corpus",
    type=PlaceParameter(),
    help="JSONL or TSV with the documents' texts, plain or gzip, or a folder of `darl-rerank corpus-to-parquet`.",
)
@click.option(
    "--index",
    type=PlaceParameter(),
    help="A folder of `darl-rerank index`, or any Lucene index with stored texts, instead of --corpus.",
)
@click.option(
    "--depth",
    callback=depth_or_auto,
    default="100",
    show_default=True,
    help="Documents of each query to rerank; the rest is left out. With auto as many as may reach the top, the first "
    "--top-k or 10; the rest of RUN keeps its order behind them.",
)
@budget_option
@click.option("--top-k", type=click.IntRange(min=1), help="Documents of each query to write.  [default: all reranked]")
@click.option(
    "--fuse",
    type=click.Choice(["auto", "rrf"]),
    is_flag=False,
    flag_value="rrf",
    help="Fuse the new order with RUN's: auto by both scores at the checkpoint's weight, rrf (and --fuse alone) by "
    "reciprocal rank.",
)
@rule_options
@click.option("--tag", default="darl-rerank", show_default=True, help="Name of the run, its last column.")
@click.option("--details", type=PlaceParameter(), help="JSONL with grade, probabilities and novelty.")
@click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with a document that the corpus lacks or that is empty.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted job.")
@json_option
@ray_options
@model_options
@exit_option
def rerank(
    run: Place,
    topics: Place,
    output: Place,
    corpus: Place | None,
    index: Place | None,
    depth: int | Literal["auto"],
    budget_ms: float | None,
    top_k: int | None,
    fuse: Literal["auto", "rrf"] | None,
    cut: str | None,
    min_grade: str | None,
    min_probability: float | None,
    prevalence: tuple[float, ...] | Literal["estimate"] | None,
    tag: str,
    details: Place | None,
    missing: str,
    restart: bool,
    as_json: bool,
    ray: str | None,
    workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    **model: str | int | None,
) -> None:
    """Rerank RUN, a TREC run over the queries of TOPICS, and write the new run to OUTPUT.

    An interrupted job goes on when the same command is given again. With --ray, every path may be a URL such as
    s3://bucket/run.trec.
    """
    from ..files import check_outputs_apart
    from ..offline import Choices

    if (corpus is None) == (index is None):
        raise click.UsageError("give either --corpus or --index: the documents' texts are in one of them")
    check_outputs_apart((output, details), (run, topics, corpus, index))
    rules = {"cut": cut, "min_grade": min_grade, "min_probability": min_probability, "prevalence": prevalence}
    effort = {"budget_ms": budget_ms, "depth": "auto" if depth == "auto" else None}
    choices = Choices(top_k, fuse, rules, effort, tag)
    job: dict[str, Any] = {
        "run": run, "topics": topics, "output": output, "corpus": corpus, "index": index, "depth": depth,
        "missing": "skip" if missing == "skip" else "error", "details": details, "choices": choices, "restart": restart,
        "model": model,
    }  # fmt: skip
    pool = {"count": workers, "cpus": cpus_per_worker, "gpus": gpus_per_worker}
    if ray is not None:
        report = _on_ray(**job, address=ray, workers=pool)
    elif any(amount is not None for amount in pool.values()):
        raise click.UsageError("--workers, --cpus-per-worker and --gpus-per-worker go with --ray")
    else:
        report = _here(**job)
    if report.not_judged:
        log.warning(f"{report.not_judged} documents were not judged and stand last; --details says why")
    if report.warned:
        log.warning(f"{report.warned} queries are unlike those of the cut; the first: {report.warning}")
    if as_json:
        print_json({
            "run": str(output),
            "details": None if details is None else str(details),
            "queries": report.queries,
            "documents": report.documents,
            "skipped": [{"qid": qid, "docid": docid} for qid, docid in report.skipped],
            "cut": report.cut,
            "not_judged": report.not_judged,
            "unused_topics": report.unused_topics,
        })  # fmt: skip
    left_out = f", {report.cut} documents left out" if report.cut else ""
    log.info(f"{output}: {report.queries} {'query' if report.queries == 1 else 'queries'} reranked{left_out}")


def _here(
    *, run: Place, topics: Place, output: Place, corpus: Place | None, index: Place | None, depth: Depth,
    missing: Missing, details: Place | None, choices: Choices, restart: bool, model: dict[str, Any],
) -> RunReport:  # fmt: skip
    """The job on this machine."""
    from ..offline import input_digests, prepare, rerank_run, wanted_documents
    from ..trec.runs import read_run
    from ..trec.topics import read_topics
    from .options import load_reranker
    from .texts import open_texts

    for place in (run, topics, output, index, details):
        if isinstance(place, str):
            raise click.UsageError(f"{place}: a URL goes with --ray")
    retrieved = read_run(run)
    queries = read_topics(topics)
    candidates = max(map(len, retrieved.values())) if depth == "auto" else depth
    documents = open_texts(corpus, index)(wanted_documents(retrieved, candidates))
    job = prepare(retrieved, queries, documents, depth=candidates, missing=missing)
    _warn(job.unused_topics, job.skipped)
    reranker = load_reranker(**model)
    if choices.effort.get("budget_ms") is not None:
        reranker.warm_up()
    return rerank_run(
        reranker,
        job,
        output,
        details=details,
        top_k=choices.top_k,
        fuse=choices.fuse,
        rules=choices.rules,
        effort=choices.effort,
        tag=choices.tag,
        settings={"depth": depth, "missing": missing, **input_digests(run=Path(run), topics=Path(topics))},
        restart=restart,
    )


def _on_ray(
    *, run: Place, topics: Place, output: Place, corpus: Place | None, index: Place | None, depth: Depth,
    missing: Missing, details: Place | None, choices: Choices, restart: bool, model: dict[str, Any], address: str,
    workers: dict[str, Any],
) -> RunReport:  # fmt: skip
    """The job on a cluster."""
    from functools import partial

    from ..distributed import Workers, rerank_on_ray
    from ..errors import InputError
    from .texts import open_texts

    texts = index if corpus is None else corpus
    assert texts is not None
    if isinstance(corpus, Path) and corpus.is_file():
        raise InputError(
            "every worker would read it whole; with --ray a corpus is a folder of `darl-rerank corpus-to-parquet`",
            path=corpus,
        )
    # The workers have another working directory.
    corpus, index = (place.absolute() if isinstance(place, Path) else place for place in (corpus, index))
    report = rerank_on_ray(
        run,
        topics,
        output,
        model.pop("model"),
        open_documents=partial(open_texts, corpus, index),
        documents=texts,
        address=address,
        workers=Workers(**{name: count for name, count in workers.items() if count is not None}),
        depth=None if depth == "auto" else depth,
        missing=missing,
        choices=choices,
        details=details,
        engine=model,
        restart=restart,
    )
    _warn(report.unused_topics, report.skipped)
    return report


def _warn(unused_topics: int, skipped: Sequence[tuple[str, str]]) -> None:
    if unused_topics:
        log.warning(f"{unused_topics} topics have no documents in the run and are left out")
    if skipped:
        qid, docid = skipped[0]
        log.warning(f"{len(skipped)} documents without text were left out; the first: {docid} (query {qid})")
