"""Does an exported folder grade as torch does, how large is it, and what does a shared prefix save?

    python benchmarks/export_parity.py CHECKPOINT COLLECTION --work FOLDER

COLLECTION has topics.tsv, corpus.jsonl.gz, qrels.txt and runs/bm25.trec. Three parts, all on the CPU:

- parity: each precision is exported as `darl-rerank export` does it, and then compared with torch in float32 on PAIRS
  judged pairs of the run, which it was not fitted to.
- lists: the same for whole lists of the run, of QUERIES queries drawn at random, all their documents down to DEPTH; the
  order too. What nobody judged counts as grade 0 there.
- prefix: the exports on the same documents with the prefix run once a query and with it in every sequence, in turns.

All layers are run. FOLDER keeps exports and scores, so that a run that was ended goes on. Writes
results/export_parity.json.
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
from darl_rerank.export.parity import compare, kendall_tau
from numpy.typing import NDArray
from provenance import write_result

from darl_rerank import Checkpoint, PairScores, Reranker
from darl_rerank.errors import CheckFailedError
from darl_rerank.evaluation.ranking import ndcg
from darl_rerank.files import atomic_write
from darl_rerank.model.checkpoint import GRAPH, PREFIX_GRAPH
from darl_rerank.offline import RerankJob, prepare, wanted_documents
from darl_rerank.results import joined
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

TOP = 10
AT_ONCE = 100
PREFIX_QUERIES = 3
REPEATS = 3
OPTIONAL = ("kendall_tau", "ndcg_difference", "novelty_difference")
# Of `PairScores`, what a comparison needs.
KEPT = ("logits", "probabilities", "score", "grade", "novelty", "truncated")


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--precisions", default="float32,int8,float16,int4", show_default=True)
@click.option("--ranked", default="int8", show_default=True, help="What ranks whole lists; '' for nothing.")
@click.option("--prefixed", default="int8", show_default=True, help="What the prefix is measured on; '' for nothing.")
@click.option("--pairs", default=500, show_default=True)
@click.option("--queries", default=12, show_default=True)
@click.option("--depth", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    model: Path, collection: Path, work: Path, precisions: str, ranked: str, prefixed: str, pairs: int, queries: int,
    depth: int, seed: int,
) -> None:  # fmt: skip
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
    lists = whole_lists(job, qrels, queries, seed)
    values["lists"] = {
        "queries": queries, "pairs": len(lists),
        "exports": {name: of_lists(checkpoint, work, name, lists) for name in names(ranked, work)},
    }  # fmt: skip
    values["prefix"] = {name: prefix_reuse(reranker(model, work, name), job) for name in names(prefixed, work)}
    show(values)
    click.echo(f"written: {write_result('export_parity', values)}", err=True)


def names(asked: str, work: Path) -> list[str]:
    """Of the exports in `asked` those that there are."""
    return [name for name in asked.split(",") if name and (work / name).is_dir()]


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


def whole_lists(job: RerankJob, qrels: Qrels, count: int, seed: int) -> list[GradedPair]:
    """All documents of so many judged queries, drawn at random."""
    chosen = random.Random(seed).sample(sorted(qid for qid in job.candidates if qid in qrels), count)
    return [
        GradedPair(job.queries[qid], text, qrels[qid].get(docid, 0), None, qid, docid)
        for qid in chosen
        for docid, text in job.candidates[qid]
    ]


def exported(checkpoint: Checkpoint, work: Path, precision: str, sample: list[GradedPair]) -> dict[str, Any]:
    folder, start = work / precision, time.monotonic()
    try:
        export(checkpoint, folder, precision=precision, overwrite=True)
    except CheckFailedError as error:
        return {"failed": str(error), "seconds": time.monotonic() - start}
    seconds = time.monotonic() - start
    exact, found = (scores(checkpoint, work, name, "pairs", sample) for name in ("torch", precision))
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


def reranker(model: Path, work: Path, name: str) -> Reranker:
    if name == "torch":
        return Reranker.from_pretrained(model, engine="torch", device="cpu", precision="float32", exit="off")
    return Reranker.from_pretrained(work / name, engine="onnx", device="cpu", exit="off")


def scores(checkpoint: Checkpoint, work: Path, name: str, part: str, pairs: list[GradedPair]) -> PairScores:
    """What torch or an export says of the pairs; kept in files that are `part`'s and `name`'s, one a hundred pairs."""
    model, parts = None, []
    for start in range(0, len(pairs), AT_ONCE):
        path = work / f"{part}-{name}-{start}.npz"
        if not path.is_file():
            assert checkpoint.folder is not None
            model = model or reranker(checkpoint.folder, work, name)
            texts = [(pair.query, pair.document) for pair in pairs[start : start + AT_ONCE]]
            found = model.score_pairs(texts)
            with atomic_write(path, "wb") as stream:
                np.savez(stream, **{key: value for key in KEPT if (value := getattr(found, key)) is not None})
        with np.load(path) as stored:
            parts.append(PairScores(**{"novelty": None, "features": None, **stored}))
    return joined(parts)


def of_lists(checkpoint: Checkpoint, work: Path, name: str, pairs: list[GradedPair]) -> dict[str, Any]:
    """The measures of whole lists, and of each query nDCG@10 in both orders and how many of the top ten they share."""
    exact, found = (scores(checkpoint, work, each, "lists", pairs) for each in ("torch", name))
    orders = [ranked_lists(pairs, each.score) for each in (exact, found)]
    judged: Qrels = {}
    for pair in pairs:
        judged.setdefault(pair.qid, {})[pair.docid] = pair.hard_grade or 0
    quality = [ndcg(judged, run, TOP) for run in orders]
    return {
        "measures": asdict(compare(pairs, exact, found)),
        "queries": {
            qid: {
                "ndcg10, torch": quality[0][qid], "ndcg10": quality[1][qid],
                "shared of the top": len(set(list(orders[0][qid])[:TOP]) & set(list(orders[1][qid])[:TOP])),
                "kendall_tau": kendall_tau(*(each.score[rows_of(pairs, qid)] for each in (exact, found))),
            }
            for qid in judged
        },
    }  # fmt: skip


def rows_of(pairs: list[GradedPair], qid: str) -> list[int]:
    return [i for i, pair in enumerate(pairs) if pair.qid == qid]


def ranked_lists(pairs: list[GradedPair], score: NDArray[Any]) -> dict[str, dict[str, float]]:
    """Documents of each query with their scores, the best first."""
    found: dict[str, dict[str, float]] = {}
    for i in np.argsort(-score, kind="stable"):
        found.setdefault(pairs[i].qid, {})[pairs[i].docid] = float(score[i])
    return found


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
    for name, found in values["lists"]["exports"].items():
        click.echo(f"{name}, whole lists: {found['measures']}")
    for name, found in values["prefix"].items():
        click.echo(
            f"{name}: shared prefix {found['times as fast']:.2f} times as fast, largest difference "
            f"{found['largest difference']:.2g}, same order: {found['same order']}"
        )


if __name__ == "__main__":
    main()
