"""Does an exported folder grade as torch does, how large is it, and what does a shared prefix save?

    python benchmarks/export_parity.py CHECKPOINT COLLECTION --work FOLDER

COLLECTION has topics.tsv, corpus.jsonl.gz, qrels.txt and runs/bm25.trec. Three parts, all on the CPU:

- parity: each precision is exported as `darl-rerank export` does it, and then compared with torch in float32 on PAIRS
  judged pairs of the run, which it was not fitted to.
- ranking: nDCG@10 of the whole run under torch in float32 and under each export.
- prefix: the exports on the same documents with the prefix run once a query and with it in every sequence, in turns.

FOLDER keeps exports and reranked runs, so that a run that was ended goes on. Writes results/export_parity.json.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from darl_rerank.export.folder import export
from darl_rerank.export.parity import compare
from provenance import write_result

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.loading import Exit
from darl_rerank.errors import CheckFailedError
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.files import atomic_write
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH
from darl_rerank.offline import RerankJob, prepare, rerank_run, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

MEASURE = "nDCG@10"
PREFIX_QUERIES = 3
REPEATS = 3
OPTIONAL = ("kendall_tau", "ndcg_difference", "novelty_difference")


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--precisions", default="float32,int8,float16,int4", show_default=True)
@click.option("--ranked", default="float32,int8", show_default=True, help="What reranks the whole run; '' for nothing.")
@click.option("--pairs", default=500, show_default=True)
@click.option("--depth", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    model: Path, collection: Path, work: Path, precisions: str, ranked: str, pairs: int, depth: int, seed: int
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.load(model)
    retrieved, qrels = read_run(collection / "runs" / "bm25.trec"), read_qrels(collection / "qrels.txt")
    documents = load_documents(collection / "corpus.jsonl.gz", wanted_documents(retrieved, depth))
    job = prepare(retrieved, read_topics(collection / "topics.tsv"), documents, depth=depth)
    sample = judged_sample(job, qrels, pairs, seed)
    values: dict[str, Any] = {
        "model": model.name, "trained": checkpoint.trained, "collection": collection.name, "seed": seed,
        "pairs": len(sample), "depth": depth,
    }  # fmt: skip
    values["exports"] = {
        name: kept(work / f"{name}.json", lambda name=name: exported(checkpoint, work, name, sample))  # type: ignore[misc]
        for name in precisions.split(",")
    }
    values["ranking"] = {}
    of_run = [name for name in ranked.split(",") if name and (work / name).is_dir()]
    for name in ("torch", *of_run) if of_run else ():
        values["ranking"][name] = kept(
            work / f"ranking-{name}.json",
            lambda name=name: ranking(reranker(model, work, name), job, qrels, work / f"{name}.trec"),  # type: ignore[misc]
        )
    values["prefix"] = {name: prefix_reuse(reranker(model, work, name), job) for name in of_run}
    show(values)
    click.echo(f"written: {write_result('export_parity', values)}", err=True)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returned the first time."""
    if not path.is_file():
        found = make()
        with atomic_write(path) as stream:
            json.dump(found, stream)
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def judged_sample(job: RerankJob, qrels: Qrels, count: int, seed: int) -> list[GradedPair]:
    """Judged pairs of the run, drawn at random, those of one query one after the other."""
    judged = [
        GradedPair(job.queries[qid], text, qrels[qid][docid], None, qid, docid)
        for qid, candidates in job.candidates.items()
        for docid, text in candidates
        if docid in qrels.get(qid, {})
    ]
    chosen = random.Random(seed).sample(range(len(judged)), min(count, len(judged)))
    return [judged[i] for i in sorted(chosen)]


def exported(checkpoint: Checkpoint, work: Path, precision: str, sample: list[GradedPair]) -> dict[str, Any]:
    folder, start = work / precision, time.monotonic()
    try:
        export(checkpoint, folder, precision=precision, overwrite=True)
    except CheckFailedError as error:
        return {"failed": str(error), "seconds": time.monotonic() - start}
    seconds = time.monotonic() - start
    assert checkpoint.folder is not None
    texts = [(pair.query, pair.document) for pair in sample]
    exact, found = (
        reranker(checkpoint.folder, work, name, exit="off").score_pairs(texts) for name in ("torch", precision)
    )
    record = Checkpoint.load(folder).export
    assert record is not None
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    return {
        "seconds": seconds, "precision": record.precision,
        "gate": json.loads((folder / "parity.json").read_text("utf-8")),
        "measures": asdict(compare(sample, exact, found)), "finer products": list(record.finer_products),
        "bytes": sum(files.values()), "graph bytes": files[GRAPH] + files[PREFIX_GRAPH],
        "weight bytes": files[f"{GRAPH}_data"],
    }  # fmt: skip


def reranker(model: Path, work: Path, name: str, exit: Exit = "auto") -> Reranker:
    if name == "torch":
        return Reranker.from_pretrained(model, engine="torch", device="cpu", precision="float32", exit=exit)
    return Reranker.from_pretrained(work / name, engine="onnx", device="cpu", exit=exit)


def ranking(model: Reranker, job: RerankJob, qrels: Qrels, output: Path) -> dict[str, Any]:
    start = time.monotonic()
    rerank_run(model, job, output)
    seconds = time.monotonic() - start
    per_query = evaluate_run(qrels, read_run(output), [MEASURE]).per_query[MEASURE]
    return {"ndcg10": float(per_query.mean()), "per query": per_query.tolist(), "seconds": seconds}


def prefix_reuse(model: Reranker, job: RerankJob) -> dict[str, Any]:
    """Seconds with and without a shared prefix, in turns, and the largest difference of probabilities."""
    queries = list(job.candidates)[:PREFIX_QUERIES]
    texts = [(job.queries[q], text) for q in queries for _, text in job.candidates[q]]
    alone = Reranker(model.checkpoint, model.engine, share_prefix=False)
    seconds: dict[str, list[float]] = {"shared": [], "whole": []}
    found = {}
    for _ in range(REPEATS):
        for name, one in (("shared", model), ("whole", alone)):
            start = time.monotonic()
            found[name] = one.score_pairs(texts)
            seconds[name].append(time.monotonic() - start)
    return {
        "documents": len(texts), "seconds": seconds,
        "times as fast": statistics.median(seconds["whole"]) / statistics.median(seconds["shared"]),
        "largest difference": float(np.abs(found["shared"].probabilities - found["whole"].probabilities).max()),
        "same order": bool((np.argsort(-found["shared"].score) == np.argsort(-found["whole"].score)).all()),
    }  # fmt: skip


def show(values: dict[str, Any]) -> None:
    click.echo("| precision | MiB | export, s | largest | mean | agreement | tau | nDCG | novelty |\n|" + "---|" * 9)
    for name, found in values["exports"].items():
        if "failed" in found:
            click.echo(f"| {name} | {found['failed']} |")
            continue
        m = found["measures"]
        cells = [
            f"{found['bytes'] / 2**20:.0f}", f"{found['seconds']:.0f}", f"{m['largest_difference']:.2g}",
            f"{m['mean_difference']:.2g}", f"{m['grade_agreement']:.4f}",
            *("-" if m[key] is None else f"{m[key]:.3g}" for key in OPTIONAL),
        ]  # fmt: skip
        click.echo(f"| {name} | " + " | ".join(cells) + " |")
    for name, found in values["ranking"].items():
        click.echo(f"{name}: {MEASURE} {found['ndcg10']:.4f}, {found['seconds']:.0f} s")
    for name, found in values["prefix"].items():
        click.echo(
            f"{name}: shared prefix {found['times as fast']:.2f} times as fast, largest difference "
            f"{found['largest difference']:.2g}, same order: {found['same order']}"
        )


if __name__ == "__main__":
    main()
