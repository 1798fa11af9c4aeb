"""Does a pair's result depend on what it is batched with? Scores the same pairs in many ways and compares.

    python benchmarks/batch_invariance.py COLLECTION [--pairs 160] [--model FOLDER] [--exported FOLDER]

COLLECTION has topics.tsv, corpus.jsonl.gz and runs/bm25.trec; the pairs are the first documents of its queries. Torch
runs in float32 and bfloat16, an export if one is given, all with the early exits that the model has. Pairs alone are
compared with float32 alone, all other ways with pairs alone by the same engine. Writes results/batch_invariance.json.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from tqdm import tqdm

from darl_rerank import Reranker
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

Pairs = list[tuple[str, str]]
SEED = 0


def read_pairs(run: Path, topics: Path, corpus: Path, count: int, per_query: int) -> Pairs:
    queries = read_topics(topics)
    wanted = [(qid, e.docid) for qid, entries in read_run(run).items() for e in entries[:per_query]][:count]
    documents = load_documents(corpus, {docid for _, docid in wanted})
    return [(queries[qid], documents[docid].full_text) for qid, docid in wanted]


def in_batches(reranker: Reranker, pairs: Sequence[tuple[str, str]], size: int) -> NDArray[np.float64]:
    parts = [reranker.score_pairs(pairs[i : i + size]).probabilities for i in range(0, len(pairs), size)]
    return np.concatenate(parts)


def ways(reranker: Reranker, pairs: Pairs) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Name and probabilities, shape (n, K), of each way to score the same pairs; alone comes first."""
    order = list(range(len(pairs)))
    random.Random(SEED).shuffle(order)
    for size, name in ((1, "alone"), (7, "batches of 7"), (64, "batches of 64")):
        yield name, in_batches(reranker, pairs, size)
    shuffled = np.empty((len(pairs), len(reranker.scale)))
    shuffled[order] = in_batches(reranker, [pairs[i] for i in order], 64)
    yield "batches of 64, in another order", shuffled
    whole = Reranker(reranker.checkpoint, reranker.engine, share_prefix=False)
    yield "batches of 64, no prefix shared", in_batches(whole, pairs, 64)


WAYS = 5


def compare(found: NDArray[np.float64], reference: NDArray[np.float64], pairs: Pairs, gains: Any) -> dict[str, float]:
    """Largest probability difference, and the part of each query's document pairs that are ordered alike."""
    queries = np.array([query for query, _ in pairs])
    a, b = found @ gains, reference @ gains
    same = total = swapped = 0
    widest = 0.0
    for query in dict.fromkeys(queries):
        x, y = a[queries == query], b[queries == query]
        upper = np.triu_indices(len(x), 1)
        first, second = np.sign(x[:, None] - x)[upper], np.sign(y[:, None] - y)[upper]
        gap = np.abs(y[:, None] - y)[upper]
        same += int((first == second).sum())
        total += len(first)
        swapped += int((first != second).sum())
        widest = max([widest, *gap[first != second].tolist()])
    return {
        "largest_difference": float(np.abs(found - reference).max()),
        "same_order": same / max(total, 1),
        "swapped": swapped,
        "widest_swapped_gap": widest,
    }


@click.command()
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--pairs", "count", default=160, show_default=True)
@click.option("--per-query", default=20, show_default=True)
@click.option("--model", type=click.Path(path_type=Path), default=DEFAULT, show_default=True)
@click.option("--exported", type=click.Path(path_type=Path), help="The model's export, run by ONNX Runtime.")
def main(collection: Path, count: int, per_query: int, model: Path, exported: Path | None) -> None:
    run, topics, corpus = (collection / name for name in ("runs/bm25.trec", "topics.tsv", "corpus.jsonl.gz"))
    pairs = read_pairs(run, topics, corpus, count, per_query)
    rerankers = [
        Reranker.from_pretrained(model, engine="torch", device="cpu", precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    if exported is not None:
        rerankers.append(Reranker.from_pretrained(exported, engine="onnx", device="cpu"))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    exact: NDArray[np.float64] | None = None
    for reranker in rerankers:
        engine = f"{reranker.engine.name}, {reranker.engine.precision}"
        alone: NDArray[np.float64] | None = None
        rows[engine] = {}
        for name, found in tqdm(ways(reranker, pairs), total=WAYS, desc=engine):
            reference = alone if alone is not None else exact
            if reference is None:
                exact = found
            else:
                rows[engine][name] = compare(found, reference, pairs, reranker.scale.gains)
            alone = found if alone is None else alone
    for engine, named in rows.items():
        for name, row in named.items():
            click.echo(
                f"{engine:16} {name:42} largest difference {row['largest_difference']:.2e}  "
                f"same order {row['same_order']:.4%}  widest swapped gap {row['widest_swapped_gap']:.1e}"
            )
    values = {
        "fingerprint": rerankers[0].checkpoint.fingerprint, "collection": collection.name, "pairs": len(pairs),
        "per_query": per_query, "seed": SEED, "rows": rows,
    }  # fmt: skip
    write_result("batch_invariance", values)


if __name__ == "__main__":
    main()
