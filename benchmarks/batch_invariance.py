"""Does a pair's result depend on what it is batched with? Scores the same pairs in many ways and compares.

    python benchmarks/batch_invariance.py RUN TOPICS CORPUS [--pairs 500] [--model FOLDER]

The pairs are the first documents of the run's queries. The reference is each pair alone in float32. Writes
results/batch_invariance.json.
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
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

Pairs = list[tuple[str, str]]
BATCHES = (1, 7, 64)
SEED = 0


def read_pairs(run: Path, topics: Path, corpus: Path, count: int, per_query: int) -> Pairs:
    queries = read_topics(topics)
    wanted = [(qid, e.docid) for qid, entries in read_run(run).items() for e in entries[:per_query]][:count]
    documents = load_documents(corpus, {docid for _, docid in wanted})
    return [(queries[qid], documents[docid].full_text) for qid, docid in wanted]


def in_batches(reranker: Reranker, pairs: Sequence[tuple[str, str]], size: int) -> NDArray[np.float64]:
    parts = [reranker.score_pairs(pairs[i : i + size]).probabilities for i in range(0, len(pairs), size)]
    return np.concatenate(parts)


def ways(reranker: Reranker, pairs: Pairs, batches: Sequence[int]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Name and probabilities, shape (n, K), of each way to score the same pairs."""
    order = list(range(len(pairs)))
    random.Random(SEED).shuffle(order)
    for share in (True, False):
        reranker = Reranker(reranker.checkpoint, reranker.engine, share_prefix=share)
        name = "prefix shared" if share else "whole sequences"
        for size in batches if share else batches[1:]:  # a pair alone shares its prefix with nobody
            yield f"batches of {size}, {name}", in_batches(reranker, pairs, size)
        shuffled = np.empty((len(pairs), len(reranker.scale)))
        shuffled[order] = in_batches(reranker, [pairs[i] for i in order], 64)
        yield f"shuffled, batches of 64, {name}", shuffled


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
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("topics", type=click.Path(path_type=Path))
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--pairs", "count", default=500, show_default=True)
@click.option("--per-query", default=20, show_default=True)
@click.option("--model", type=click.Path(path_type=Path))
def main(run: Path, topics: Path, corpus: Path, count: int, per_query: int, model: Path | None) -> None:
    pairs = read_pairs(run, topics, corpus, count, per_query)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    reference: NDArray[np.float64] | None = None
    for precision in ("float32", "bfloat16"):
        reranker = Reranker.from_pretrained(model, engine="torch", device="cpu", precision=precision)
        rows[precision] = {}
        steps = ways(reranker, pairs, BATCHES)
        for name, found in tqdm(steps, total=2 * len(BATCHES) + 1, desc=precision):
            # The first way there is: float32, batches of 1.
            reference = found if reference is None else reference
            rows[precision][name] = compare(found, reference, pairs, reranker.scale.gains)
    for precision, named in rows.items():
        for name, row in named.items():
            click.echo(
                f"{precision:9} {name:42} largest difference {row['largest_difference']:.2e}  "
                f"same order {row['same_order']:.4%}  widest swapped gap {row['widest_swapped_gap']:.1e}"
            )
    write_result("batch_invariance", {"pairs": len(pairs), "per_query": per_query, "seed": SEED, "rows": rows})


if __name__ == "__main__":
    main()
