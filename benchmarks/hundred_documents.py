"""How long a hundred documents take: what people use today, and the model that ships, with and without early exits.

    python benchmarks/hundred_documents.py DATA --int8 FOLDER [--queries 3]

DATA is trec-dl-2019's folder; the lists are BM25's first 100. --int8 is an int8 export of smollm2-darl. All run the
same queries in turn, on the threads that OMP_NUM_THREADS allows (1 for the figures that are shown), and processor
seconds are taken, which other work on the machine changes little. Writes results/hundred_documents.json.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from provenance import write_result
from speed import contenders as c

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cache import cache_folder
from darl_rerank.offline import wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

DEPTH, SEED = 100, 0
CROSS_ENCODER = "sentence-transformers CrossEncoder, float32"
Run = Callable[[Sequence[tuple[str, str]]], Any]


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--int8", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--queries", default=3, show_default=True)
def main(data: Path, int8: Path, queries: int) -> None:
    checkpoint = Checkpoint.load("smollm2-darl")
    classifier = c.write_classifier(checkpoint, cache_folder() / f"classifier-{checkpoint.fingerprint[:12]}")
    runs: dict[str, Run] = {
        one.name: one.load() for one in (c.of_cross_encoder(classifier, checkpoint, p) for p in ("float32", "bfloat16"))
    }
    for name, model, settings in (
        ("smollm2-darl, torch, float32", "smollm2-darl", {"engine": "torch", "precision": "float32"}),
        ("smollm2-darl, torch, bfloat16", "smollm2-darl", {"engine": "torch", "precision": "bfloat16"}),
        ("smollm2-darl, ONNX Runtime, int8, exit off", int8, {"engine": "onnx", "exit": "off"}),
        ("smollm2-darl, ONNX Runtime, int8", int8, {"engine": "onnx"}),
    ):
        runs[name] = Reranker.from_pretrained(model, **settings).score_pairs  # type: ignore[arg-type]
    pairs = lists(data, queries)
    for run in runs.values():
        run(pairs[0][:4])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    left: list[float] = []
    for number, query in enumerate(pairs):
        for name, run in runs.items():
            start = time.process_time()
            found = run(query)
            seconds[name].append((time.process_time() - start) * DEPTH / len(query))
            if name == "smollm2-darl, ONNX Runtime, int8":
                left.append(float((found.exit_layers > 0).mean()))
            click.echo(f"{number + 1}: {name}: {seconds[name][-1]:.1f} s", err=True)
    rows = [
        {
            "name": name, "processor seconds": taken, "median": statistics.median(taken),
            "times the CrossEncoder": statistics.median(
                one / other for one, other in zip(seconds[CROSS_ENCODER], taken, strict=True)
            ),
        }
        for name, taken in seconds.items()
    ]  # fmt: skip
    for row in rows:
        click.echo(f"{row['name']:50} {row['median']:6.1f} s  {row['times the CrossEncoder']:.1f} times")
    write_result(
        "hundred_documents",
        {"collection": data.name, "threads": os.environ.get("OMP_NUM_THREADS"), "seed": SEED, "left early": left,
         "rows": rows},
    )  # fmt: skip


def lists(data: Path, queries: int) -> list[list[tuple[str, str]]]:
    run, topics = read_run(data / "runs" / "bm25.trec"), read_topics(data / "topics.tsv")
    drawn = random.Random(SEED).sample(sorted(run), queries)
    documents = load_documents(data / "corpus.jsonl.gz", wanted_documents({qid: run[qid] for qid in drawn}, DEPTH))
    return [[(topics[qid], documents[hit.docid].full_text) for hit in run[qid][:DEPTH]] for qid in drawn]


if __name__ == "__main__":
    main()
