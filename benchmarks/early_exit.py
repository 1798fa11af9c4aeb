"""What early exit saves and costs, by collection: the model run with its exits and whole, on first stages' lists.

    python benchmarks/early_exit.py CANDIDATES WORK [--model M] [--queries 20] [--only NAMES] [--device D]

CANDIDATES is the folder of benchmarks/scores.py's `candidates`. Of each collection so many queries, drawn at random,
with BM25's first 100 documents (50 where the folder has no more). WORK gets a line a query, so that an interrupted run
goes on. Writes results/early_exit.json: how many layers were run, how many pairs left and how many of those deserved a
place, nDCG@10 whole, with exits, and with the exits' own expected gain as the score, and whether grades of pairs that
stayed are those of the whole model.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scores import COLLECTIONS, SEED, whole_lines
from tqdm import tqdm

from darl_rerank import PairScores, Reranker
from darl_rerank.evaluation.ranking import ndcg
from darl_rerank.evaluation.significance import paired_test

DEPTH = 100
CUTOFF = 10


@click.command(help=__doc__)
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-darl", show_default=True)
@click.option("--queries", default=20, show_default=True, help="Of each collection.")
@click.option("--layers", default=30, show_default=True, help="Of the base model.")
@click.option("--only", help="Names of collections, with commas between.")
@click.option("--engine", default="torch", show_default=True)
@click.option("--device")
def main(
    candidates: Path,
    work: Path,
    model: str,
    queries: int,
    layers: int,
    only: str | None,
    engine: str,
    device: str | None,
) -> None:
    early, whole = (Reranker.from_pretrained(model, engine=engine, device=device, exit=way) for way in ("auto", "off"))
    exits, last = early.engine.exits, early.checkpoint.layers or layers
    if exits is None or exits.rule is None:
        raise click.UsageError(f"{model} has no exits with a rule")
    work.mkdir(parents=True, exist_ok=True)
    rows = {}
    for collection in COLLECTIONS:
        source = candidates / f"{collection.name}.candidates.jsonl.gz"
        if not source.is_file() or (only and collection.name not in only.split(",")):
            continue
        output = work / f"{collection.name}.exits.jsonl"
        done = [json.loads(line) for line in whole_lines(output)]
        with output.open("a", encoding="utf-8") as stream:
            for query in tqdm(drawn(source, queries)[len(done) :], desc=collection.name, mininterval=10):
                done.append(judged(query, early, whole))
                stream.write(json.dumps(done[-1]) + "\n")
                stream.flush()
        rows[collection.name] = {
            "role": collection.role,
            **summary([query for query in done if query["docids"]], exits.rule.promise.grade, last),
        }
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[collection.name].items()}
        click.echo(f"{collection.name}: {shown}")
    facts = {
        "model": Path(model).name,
        "fingerprint": early.fingerprint,
        "engine": f"{early.engine.name}, {early.engine.precision}",
    }
    rule = exits.rule.to_dict(early.scale)
    write_result("early_exit", {**facts, "layers": list(exits.layers), "last layer": last, "rule": rule, "rows": rows})


def drawn(source: Path, count: int) -> list[dict[str, Any]]:
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        found = [json.loads(line) for line in stream]
    return random.Random(SEED).sample(found, min(count, len(found)))


def judged(query: dict[str, Any], early: Reranker, whole: Reranker) -> dict[str, Any]:
    """What both say of BM25's documents of a query."""
    hits = sorted(query["stages"].get("bm25", ()), key=lambda hit: -hit[1])[:DEPTH]
    places = [int(place) for place, _ in hits]
    pairs = [(query["query"], query["texts"][place]) for place in places]
    (found, seconds), (full, seconds_whole) = (timed(each, pairs) for each in (early, whole))
    assert found.exit_layers is not None
    return {
        "qid": query["qid"], "docids": [query["docids"][place] for place in places],
        "grades": [query["grades"][place] for place in places],
        "judged": {d: g for d, g in zip(query["docids"], query["grades"], strict=True) if g > 0},
        "layers": found.exit_layers.tolist(), "score": found.score.tolist(), "whole": full.score.tolist(),
        "gain": early.scale.expected_gain(found.probabilities).tolist(),
        "grade": found.grade.tolist(), "whole grade": full.grade.tolist(),
        "seconds": seconds, "whole seconds": seconds_whole,
    }  # fmt: skip


def timed(reranker: Reranker, pairs: list[tuple[str, str]]) -> tuple[PairScores, float]:
    """Scores, and processor seconds that they took, which other work on the machine changes little."""
    start = time.process_time()
    return reranker.score_pairs(pairs), time.process_time() - start


def summary(queries: list[dict[str, Any]], grade: int, last: int) -> dict[str, Any]:
    """Of one collection; `grade` deserves a place, or 1 where people gave no higher one. `last` layer of the model."""
    layers, given, same = (joined(queries, name) for name in ("layers", "grades", "grade"))
    deserves = given >= (grade if given.max() >= grade else 1)
    left = layers > 0
    run = float(np.where(left, layers, last).mean())
    orders = {name: per_query(queries, name) for name in ("whole", "score", "gain")}
    test = paired_test(orders["score"], orders["whole"])
    return {
        "queries": len(queries), "pairs": len(layers),
        "layers": run, "share of layers": run / last,
        "processor seconds a query": float(np.mean([query["seconds"] for query in queries])),
        "processor seconds a query, whole": float(np.mean([query["whole seconds"] for query in queries])),
        "left": float(left.mean()), "relevant": int(deserves.sum()), "relevant that left": int((left & deserves).sum()),
        "ndcg@10 whole": float(orders["whole"].mean()), "ndcg@10 with exits": float(orders["score"].mean()),
        "ndcg@10 with the exits' gain": float(orders["gain"].mean()),
        "difference": [test.difference, test.low, test.high],
        "grades agree, of those that stayed": float((same == joined(queries, "whole grade"))[~left].mean())
        if (~left).any() else None,
    }  # fmt: skip


def joined(queries: list[dict[str, Any]], name: str) -> NDArray[Any]:
    return np.concatenate([np.array(query[name]) for query in queries])


def per_query(queries: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """nDCG@10 of each query that has a document of grade 1 or better."""
    qrels = {query["qid"]: query["judged"] for query in queries if query["judged"]}
    run = {
        query["qid"]: dict(zip(query["docids"], map(float, query[name]), strict=True))
        for query in queries
        if query["judged"]
    }
    values = ndcg(qrels, run, CUTOFF)
    return np.array([values[qid] for qid in qrels])


if __name__ == "__main__":
    main()
