"""`darl-rerank rerank`: a TREC run in, a reranked run out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from .options import budget_option, depth_or_auto, exit_option, model_options, rule_options
from .terminal import json_option, print_json

if TYPE_CHECKING:
    from ..offline import HasText


log = logging.getLogger(__name__)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("topics", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--corpus", type=click.Path(path_type=Path), help="JSONL or TSV with the documents' texts, plain or gzip."
)
@click.option(
    "--index",
    type=click.Path(path_type=Path),
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
@click.option("--details", type=click.Path(path_type=Path), help="JSONL with grade, probabilities and novelty.")
@click.option(
    "--missing",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with a document that the corpus lacks or that is empty.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with an interrupted job.")
@json_option
@model_options
@exit_option
def rerank(
    run: Path,
    topics: Path,
    output: Path,
    corpus: Path | None,
    index: Path | None,
    depth: int | Literal["auto"],
    budget_ms: float | None,
    top_k: int | None,
    fuse: Literal["auto", "rrf"] | None,
    cut: str | None,
    min_grade: str | None,
    min_probability: float | None,
    prevalence: tuple[float, ...] | Literal["estimate"] | None,
    tag: str,
    details: Path | None,
    missing: str,
    restart: bool,
    as_json: bool,
    **model: str | int | None,
) -> None:
    """Rerank RUN, a TREC run over the queries of TOPICS, and write the new run to OUTPUT.

    An interrupted job goes on when the same command is given again.
    """
    from ..offline import input_digests, prepare, rerank_run, wanted_documents
    from ..trec.runs import read_run
    from ..trec.topics import read_topics
    from .options import load_reranker

    if (corpus is None) == (index is None):
        raise click.UsageError("give either --corpus or --index: the documents' texts are in one of them")
    retrieved = read_run(run)
    queries = read_topics(topics)
    candidates = max(map(len, retrieved.values())) if depth == "auto" else depth
    documents = _documents(corpus, index, wanted_documents(retrieved, candidates))
    job = prepare(retrieved, queries, documents, depth=candidates, missing="skip" if missing == "skip" else "error")
    if job.unused_topics:
        log.warning(f"{job.unused_topics} topics have no documents in the run and are left out")
    if job.skipped:
        qid, docid = job.skipped[0]
        log.warning(f"{len(job.skipped)} documents without text were left out; the first: {docid} (query {qid})")
    reranker = load_reranker(**model)
    rules = {"cut": cut, "min_grade": min_grade, "min_probability": min_probability, "prevalence": prevalence}
    effort = {"budget_ms": budget_ms, "depth": "auto" if depth == "auto" else None}
    settings = {"depth": depth, "missing": missing, **input_digests(run=run, topics=topics)}
    if budget_ms is not None:
        reranker.warm_up()
    report = rerank_run(
        reranker,
        job,
        output,
        details=details,
        top_k=top_k,
        fuse=fuse,
        rules=rules,
        effort=effort,
        tag=tag,
        settings=settings,
        restart=restart,
    )
    if report.not_judged:
        log.warning(f"{report.not_judged} documents were not judged and stand last; --details says why")
    if report.warned:
        log.warning(f"{report.warned} queries are unlike those of the cut; the first: {report.warning}")
    if as_json:
        print_json({
            "run": str(output),
            "details": None if details is None else str(details),
            "queries": len(job.queries),
            "documents": sum(map(len, job.candidates.values())),
            "skipped": [{"qid": qid, "docid": docid} for qid, docid in job.skipped],
            "cut": report.cut,
            "not_judged": report.not_judged,
            "unused_topics": job.unused_topics,
        })  # fmt: skip
    left_out = f", {report.cut} documents left out" if report.cut else ""
    log.info(f"{output}: {len(job.queries)} queries reranked{left_out}")


def _documents(corpus: Path | None, index: Path | None, wanted: set[str]) -> Mapping[str, HasText]:
    if corpus is not None:
        from ..trec.corpora import load_documents
        from ..trec.lines import Faults

        # A line that nobody asked for costs nothing; a document that is missing for it is handled by --missing.
        faults = Faults(corpus)
        documents = load_documents(corpus, wanted, faults=faults)
        if len(faults):
            log.warning(f"{len(faults)} lines of the corpus are no documents; the first: {faults.first}")
        return documents
    from darl_rerank.adapters.document_store import FaissDocuments, is_document_folder
    from darl_rerank.adapters.lucene import LuceneDocuments

    assert index is not None
    return FaissDocuments(index) if is_document_folder(index) else LuceneDocuments(index)
