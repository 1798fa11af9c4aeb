"""Three first stages before and after reranking, on the product catalogue that comes with the package.

BM25 (Lucene), dense vectors (FAISS HNSW, all-MiniLM-L6-v2) and their reciprocal-rank fusion retrieve 100 products a
query; the model judges the first --depth of each, the rest keeps its place behind them. Then the order before and the
one after are fused by reciprocal rank. The candidates of all three are judged together, each pair once. Indexes and
judgements are kept in the user's cache, so an interrupted run goes on. Prints a table and writes
results/first_stages.json.
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
from darl_rerank.adapters.lucene import lucene_search
from provenance import write_result

from darl_rerank import Reranker, icecat
from darl_rerank.cache import cache_folder
from darl_rerank.cli.catalogue import faiss_index, lucene_index
from darl_rerank.evaluation.ranking import RankingScores, evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.offline import prepare, rerank_run
from darl_rerank.trec.fusion import fuse_runs
from darl_rerank.trec.lines import read_lines
from darl_rerank.trec.runs import Run, RunEntry, in_given_order

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
    union = in_given_order(
        {
            qid: dict.fromkeys(entry.docid for run in stages.values() for entry in islice(run[qid], depth))
            for qid in topics
        }
    )
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
    order = {}
    for qid, entries in run.items():
        head = sorted(entries[:depth], key=lambda entry: -scores[qid][entry.docid])
        order[qid] = [entry.docid for entry in (*head, *entries[depth:])]
    return in_given_order(order)


def row(before: Run, after: Run, qrels: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The measures of both runs and of their fusion, and paired tests of nDCG@10 against the first."""
    order, fused = (
        in_given_order({qid: [hit.docid for hit in hits] for qid, hits in run.items()})
        for run in (before, fuse_runs([before, after]))
    )
    # A query without results counts as 0; ir-measures' Judged@10 would divide by their number.
    measured = {
        name: evaluate_run(qrels, {q: es for q, es in run.items() if es}, MEASURES)
        for name, run in (("before", order), ("after", after), ("fused", fused))
    }
    values = {name: scores.per_query["nDCG@10"] for name, scores in measured.items()}
    tests = {name: paired_test(values[name], values["before"], seed=0) for name in ("after", "fused")}
    return {
        **{name: _means(scores) for name, scores in measured.items()},
        "gain": {name: {key: getattr(test, key) for key in test.__slots__} for name, test in tests.items()},
        "per_query_ndcg": {
            "qids": measured["before"].qids,
            **{name: np.round(found, 6).tolist() for name, found in values.items()},
        },
    }


def _means(scores: RankingScores) -> dict[str, float]:
    return {measure: scores.mean(measure) for measure in MEASURES}


def print_table(rows: Mapping[str, Mapping[str, Any]], depth: int, pairs: int, *, trained: bool) -> None:
    """Two lines a first stage."""
    for name, values in rows.items():
        before = values["before"]
        for kind in ("after", "fused"):
            after, gain = values[kind], values["gain"][kind]
            both = "  ".join(f"{measure} {before[measure]:.3f} → {after[measure]:.3f}" for measure in MEASURES)
            change = f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}], p {gain['p']:.4f}"
            print(f"{name:8s} {kind:8s} {both}  nDCG@10 {change}")
    model = "" if trained else ", untrained model: zero-shot from the grade words"
    print(f"The first {depth} of each stage reranked ({pairs:,} pairs{model}); products without judgement count as 0.")


if __name__ == "__main__":
    main()
