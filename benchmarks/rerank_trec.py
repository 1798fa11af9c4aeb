"""Reranks a judged TREC run and prints nDCG@10 before and after, with documents a second.

    python benchmarks/rerank_trec.py NAME RUN TOPICS CORPUS QRELS [--model FOLDER] [--depth 100] [--engine torch]

Writes results/rerank_NAME.json. The speed is that of this run on this machine, beside whatever else ran there.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click
from provenance import write_result

from darl_rerank import Reranker
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.offline import prepare, rerank_run, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

MEASURE = "nDCG@10"


@click.command()
@click.argument("name")
@click.argument("files", nargs=4, type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path))
@click.option("--depth", default=100, show_default=True)
@click.option("--engine", default="auto", show_default=True)
@click.option("--precision")
def main(
    name: str,
    files: tuple[Path, Path, Path, Path],
    model: Path | None,
    depth: int,
    engine: str,
    precision: str | None,
) -> None:
    run, topics, corpus, judgements = files
    retrieved, qrels = read_run(run), read_qrels(judgements)
    documents = load_documents(corpus, wanted_documents(retrieved, depth))
    job = prepare(retrieved, read_topics(topics), documents, depth=depth)
    reranker = Reranker.from_pretrained(model, engine=engine, precision=precision)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.trec"
        start = time.monotonic()
        rerank_run(reranker, job, output)
        seconds = time.monotonic() - start
        reranked = read_run(output)
    before, after = (evaluate_run(qrels, r, [MEASURE]).per_query[MEASURE] for r in (retrieved, reranked))
    test = paired_test(after, before)
    count = sum(map(len, job.candidates.values()))
    click.echo(
        f"{MEASURE} over {len(before)} queries: {before.mean():.4f} before, {after.mean():.4f} after, difference "
        f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]; {count} documents, {count / seconds:.1f} a second"
    )
    values = {
        "run": run.name,
        "depth": depth,
        "model": "default" if model is None else model.name,
        "trained": reranker.checkpoint.trained,
        "engine": reranker.engine.name,
        "precision": reranker.engine.precision,
        "documents": count,
        "seconds": seconds,
        "load_average_before": load_before,
        "before": before.tolist(),
        "after": after.tolist(),
        "ndcg10_before": float(before.mean()),
        "ndcg10_after": float(after.mean()),
        "difference": [test.difference, test.low, test.high],
        "seed": 0,
    }
    write_result(f"rerank_{name}", values)


if __name__ == "__main__":
    main()
