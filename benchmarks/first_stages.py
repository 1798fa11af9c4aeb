"""Three first stages before and after reranking, on the product catalogue that comes with the package.

BM25 (Lucene), dense vectors (FAISS HNSW, all-MiniLM-L6-v2) and their reciprocal-rank fusion retrieve 100 products a
query; the model judges the first --depth of each, the rest keeps its place behind them. The candidates of all three
are judged together, each pair once. Indexes and judgements are kept in the user's cache, so an interrupted run goes on.
Prints a table and writes results/first_stages.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from darl_rerank.adapters.faiss import FaissRetriever, read_index_settings
from darl_rerank.adapters.fusion import fuse_runs
from darl_rerank.adapters.lucene import lucene_search
from provenance import write_result

from darl_rerank import Reranker, icecat
from darl_rerank.base_model import cache_folder
from darl_rerank.cli.catalogue import faiss_index, lucene_index
from darl_rerank.evaluation.ranking import RankingScores, evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.offline import prepare, rerank_run
from darl_rerank.trec.lines import read_lines
from darl_rerank.trec.runs import Run, RunEntry

RETRIEVED = 100
MEASURES = ("nDCG@10", "R@100", "Judged@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=20, help="products of each query and first stage to judge")
    parser.add_argument("--model", help="a checkpoint folder; the default one if not given")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--name", default="first_stages", help="the result's name")
    options = parser.parse_args()

    topics, qrels = icecat.queries(), icecat.judgements()
    dense_folder = faiss_index()
    stages = first_stages(topics, lucene_index(), dense_folder)
    reranker = Reranker.from_pretrained(options.model, engine=options.engine, precision=options.precision)
    scores = judge(reranker, stages, topics, options.depth)

    rows = {name: row(run, reranked(run, scores, options.depth), qrels) for name, run in stages.items()}
    pairs = sum(map(len, scores.values()))
    print_table(rows, options.depth, pairs, trained=reranker.checkpoint.trained)
    path = write_result(
        options.name,
        {
            "model": {
                "fingerprint": reranker.fingerprint,
                "trained": reranker.checkpoint.trained,
                "base": reranker.checkpoint.base.to_dict(),
            },
            "collection": {"name": "icecat", "products": icecat.PRODUCTS, "queries": len(topics)},
            "faiss_index": read_index_settings(dense_folder),
            "retrieved": RETRIEVED,
            "depth": options.depth,
            "judged_pairs": pairs,
            "seed": 0,
            "stages": rows,
        },
    )
    print(f"\n{path.name} written")


def first_stages(topics: Mapping[str, str], lucene: Path, dense: Path) -> dict[str, Run]:
    """The three runs, each with up to 100 products a query."""
    bm25 = lucene_search(lucene, topics, k=RETRIEVED)
    found = FaissRetriever.load(dense).candidates(list(topics.values()), RETRIEVED)
    vectors = {
        qid: [RunEntry(product.docid, product.distance) for product in products]
        for qid, products in zip(topics, found, strict=True)
    }
    fused = {
        qid: [RunEntry(hit.docid, hit.score) for hit in hits]
        for qid, hits in fuse_runs([bm25, vectors], top_k=RETRIEVED).items()
    }
    return {"BM25": bm25, "dense": vectors, "fusion": fused}


def judge(
    reranker: Reranker, stages: Mapping[str, Run], topics: Mapping[str, str], depth: int
) -> dict[str, dict[str, float]]:
    """Score of every candidate of any stage, by query and product."""
    union: Run = {}
    for qid in topics:
        docids = dict.fromkeys(entry.docid for run in stages.values() for entry in islice(run[qid], depth))
        union[qid] = [RunEntry(docid, -float(rank)) for rank, docid in enumerate(docids)]
    products = {product.docid: product for product in icecat.read_products()}
    job = prepare(union, topics, products, depth=len(stages) * depth)
    folder = cache_folder() / "first_stages"
    details = folder / f"{job.sha256[:12]}-{reranker.fingerprint.replace('/', '-')[:80]}.jsonl"
    if not details.is_file():
        rerank_run(reranker, job, details.with_suffix(".trec"), details=details)
    scores: dict[str, dict[str, float]] = {}
    for _, line in read_lines(details):
        values = json.loads(line)
        scores.setdefault(values["qid"], {})[values["docid"]] = values["score"]
    return scores


def reranked(run: Run, scores: Mapping[str, Mapping[str, float]], depth: int) -> Run:
    """The run with its first `depth` products in the order of their scores, ties as they were."""
    after: Run = {}
    for qid, entries in run.items():
        head = sorted(entries[:depth], key=lambda entry: -scores[qid][entry.docid])
        # Places as scores, so that nothing but the order counts.
        after[qid] = [RunEntry(entry.docid, -float(i)) for i, entry in enumerate([*head, *entries[depth:]])]
    return after


def row(before: Run, after: Run, qrels: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The measures of both runs, and the paired test of nDCG@10."""
    order = {qid: [RunEntry(e.docid, -float(i)) for i, e in enumerate(es)] for qid, es in before.items()}
    # A query without results counts as 0; ir-measures' Judged@10 would divide by their number.
    measured = [evaluate_run(qrels, {q: es for q, es in run.items() if es}, MEASURES) for run in (order, after)]
    values = [scores.per_query["nDCG@10"] for scores in measured]
    test = paired_test(values[1], values[0], seed=0)
    return {
        "before": _means(measured[0]),
        "after": _means(measured[1]),
        "gain": {name: getattr(test, name) for name in test.__slots__},
        "per_query_ndcg": {
            "qids": measured[0].qids,
            "before": np.round(values[0], 6).tolist(),
            "after": np.round(values[1], 6).tolist(),
        },
    }


def _means(scores: RankingScores) -> dict[str, float]:
    return {measure: scores.mean(measure) for measure in MEASURES}


def print_table(rows: Mapping[str, Mapping[str, Any]], depth: int, pairs: int, *, trained: bool) -> None:
    """One line a first stage."""
    heads = f"{'nDCG@10':>16s}  {'gain, 95 % interval':>26s} {'p':>7s} {'R@100':>14s} {'Judged@10':>14s}"
    print(f"{'first stage':12s} {heads}")
    for name, values in rows.items():
        before, after, gain = values["before"], values["after"], values["gain"]
        change = f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        both = {measure: f"{before[measure]:.3f} → {after[measure]:.3f}" for measure in MEASURES}
        print(
            f"{name:12s} {both['nDCG@10']:>16s}  {change:>26s} {gain['p']:7.4f} "
            f"{both['R@100']:>14s} {both['Judged@10']:>14s}"
        )
    model = "" if trained else ", untrained model: zero-shot from the grade words"
    print(f"The first {depth} of each stage reranked ({pairs:,} pairs{model}); products without judgement count as 0.")


if __name__ == "__main__":
    main()
