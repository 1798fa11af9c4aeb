"""What it saves and costs to let only the last token go on behind a layer (`prefill_layers`), beside the whole model.

    python benchmarks/prefill_layers.py CANDIDATES WORK [--layers 12,14,16,18] [--taught FOLDER] [--only NAMES]

CANDIDATES is the folder of benchmarks/scores.py's `candidates`. Of each collection so many queries, drawn at random,
with BM25's first documents. The model that ships, without exits, is changed to end its prefill behind each of --layers,
untaught; --taught are checkpoints of bundled/prefill.py. All judge a query in turn, so that their processor seconds can
be compared. WORK gets a line a query, so that an interrupted run goes on. Writes results/prefill_layers.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from early_exit import drawn, joined, per_query, timed
from provenance import write_result
from scores import COLLECTIONS, whole_lines
from tqdm import tqdm

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.evaluation.significance import paired_test

WHOLE = "whole"


@click.command(help=__doc__)
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-darl", show_default=True)
@click.option("--layers", default="12,14,16,18", show_default=True)
@click.option("--taught", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--queries", default=20, show_default=True, help="Of each collection.")
@click.option("--depth", default=60, show_default=True, help="Documents of a query.")
@click.option("--only", default="trec-dl-2021,selqa", show_default=True, help="Names of collections.")
def main(
    candidates: Path, work: Path, model: str, layers: str, taught: tuple[Path, ...], queries: int, depth: int, only: str
) -> None:
    whole = Checkpoint.load(model).replace(exits=None, novelty=None)
    models = {WHOLE: whole}
    for each in map(int, layers.split(",")):
        models[f"{each} layers"] = whole.replace(prefill_layers=each)
    learned = {}
    for folder in taught:
        checkpoint = Checkpoint.load(folder).replace(novelty=None)
        learned[name := f"{checkpoint.prefill_layers} layers, taught"] = json.loads(
            (folder.parent / "train.json").read_text("utf-8")
        )
        models[name] = checkpoint
    rerankers = {name: Reranker(each, TorchEngine(each)) for name, each in models.items()}
    work.mkdir(parents=True, exist_ok=True)
    rows = {}
    for collection in COLLECTIONS:
        if collection.name not in only.split(","):
            continue
        output = work / f"{collection.name}.jsonl"
        done = [json.loads(line) for line in whole_lines(output)]
        source = candidates / f"{collection.name}.candidates.jsonl.gz"
        with output.open("a", encoding="utf-8") as stream:
            for query in tqdm(drawn(source, queries)[len(done) :], desc=collection.name, mininterval=10):
                done.append(judged(query, rerankers, depth))
                stream.write(json.dumps(done[-1]) + "\n")
                stream.flush()
        rows[collection.name] = {"role": collection.role, **summary(done, list(models))}
        for name, row in rows[collection.name]["models"].items():
            click.echo(f"{collection.name}, {name}: nDCG@10 {row['ndcg@10']:.3f}, time {row['time']:.2f}")
    engine = next(iter(rerankers.values())).engine
    write_result("prefill_layers", {
        "model": Path(model).name, "fingerprint": Checkpoint.load(model).fingerprint, "last layer": whole.layers,
        "engine": f"{engine.name}, {engine.precision}", "depth": depth, "taught": learned, "rows": rows,
    })  # fmt: skip


def judged(query: dict[str, Any], rerankers: dict[str, Reranker], depth: int) -> dict[str, Any]:
    """What each model says of BM25's documents of a query."""
    hits = sorted(query["stages"].get("bm25", ()), key=lambda hit: -hit[1])[:depth]
    places = [int(place) for place, _ in hits]
    pairs = [(query["query"], query["texts"][place]) for place in places]
    found = {name: timed(reranker, pairs) for name, reranker in rerankers.items()}
    return {
        "qid": query["qid"], "docids": [query["docids"][place] for place in places],
        "judged": {d: g for d, g in zip(query["docids"], query["grades"], strict=True) if g > 0},
        "first stage": [-place for place in range(len(places))],
        **{name: scores.score.tolist() for name, (scores, _) in found.items()},
        "seconds": {name: seconds for name, (_, seconds) in found.items()},
    }  # fmt: skip


def summary(queries: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    queries = [query for query in queries if query["docids"]]
    whole = per_query(queries, WHOLE)
    models = {}
    for name in names:
        own = per_query(queries, name)
        test = paired_test(own, whole)
        seconds = [np.sum([query["seconds"][each] for query in queries]) for each in (name, WHOLE)]
        models[name] = {
            "ndcg@10": float(own.mean()), "difference": [test.difference, test.low, test.high],
            "correlation": float(np.corrcoef(joined(queries, name), joined(queries, WHOLE))[0, 1]),
            "time": float(seconds[0] / seconds[1]), "processor seconds": float(seconds[0]),
        }  # fmt: skip
    return {
        "queries": len(queries), "pairs": len(joined(queries, WHOLE)),
        "first stage": float(per_query(queries, "first stage").mean()), "models": models,
    }  # fmt: skip


if __name__ == "__main__":
    main()
