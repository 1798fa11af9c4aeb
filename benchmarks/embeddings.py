"""BM25's first 100 by an embedding's cosine, and that fused with the model: what embeddings add that one has already.

    python benchmarks/embeddings.py DATA --work FOLDER --vectors FOLDER [--encoder minilm] [--encoder PATH]

--work is scores.py's: the model's scores of the lists; DATA the folder of collections. The cosine takes the place of
the first stage's score in fuse="auto", at the checkpoint's weight; beside it reciprocal ranks, and on trec-dl-2021
alone, which is for development, other weights. An ENCODER is what `darl_rerank.adapters.faiss` takes. On a CPU that
has bfloat16, encoders run in it. --vectors keeps their vectors. Writes results/embeddings.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from darl_rerank.adapters.faiss import encode, load_encoder
from numpy.typing import NDArray
from provenance import write_result
from scores import Judged, qrels_file, read_scores

from darl_rerank import Checkpoint
from darl_rerank.engines.hardware import cpu_has_bfloat16
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.files import atomic_write
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.fusion import fuse, fuse_scores
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import in_given_order
from darl_rerank.trec.topics import read_topics

COLLECTIONS = {"trec-dl-2021": "dev", "trec-dl-2019": "test"}
STAGE, DEPTH, MEASURE, SEED = "bm25", 100, "nDCG@10", 0
WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BLOCK = 512
Order = Callable[["Scores"], NDArray[np.float64]]


class Scores:
    """One query's documents in BM25's order, n of them, each array of shape (n,)."""

    def __init__(self, query: Judged, gains: NDArray[np.float64]) -> None:
        places, first = query.stages[STAGE]
        places = places[:DEPTH]
        self.qid, self.docids = query.qid, [query.docids[i] for i in places]
        self.first = first[:DEPTH]
        self.model = (query.probabilities.reshape(-1, len(gains)) @ gains)[places]
        self.cosine = np.zeros(len(places))


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--vectors", type=click.Path(path_type=Path), required=True)
@click.option("--encoder", "encoders", multiple=True, default=("minilm",), show_default=True)
def main(data: Path, work: Path, vectors: Path, encoders: tuple[str, ...]) -> None:
    checkpoint = Checkpoint.load(DEFAULT)
    values: dict[str, Any] = {"seed": SEED, "depth": DEPTH, "weight": checkpoint.decisions.fusion.weight, "sets": {}}
    for name, role in COLLECTIONS.items():
        qrels, lists = read_qrels(qrels_file(data / name)), []
        for query in read_scores(work, name):
            if query.qid in qrels and len(query.stages[STAGE][0]):
                lists.append(Scores(query, checkpoint.scale.gains))
        for encoder in encoders:
            add_cosines(lists, data / name, encoder, vectors)
            row = measured(lists, qrels, values["weight"], with_weights=role == "dev")
            values["sets"][f"{name}, {Path(encoder).name}"] = {"role": role, "queries": len(lists), **row}
            click.echo(f"{name} {Path(encoder).name}: " + "  ".join(f"{k} {v:.3f}" for k, v in row[MEASURE].items()))
    click.echo(f"written: {write_result('embeddings', values)}", err=True)


def add_cosines(lists: list[Scores], folder: Path, encoder: str, kept: Path) -> None:
    topics = read_topics(folder / "topics.tsv")
    docids = sorted({docid for one in lists for docid in one.docids})
    documents = load_documents(folder / "corpus.jsonl.gz", set(docids))
    name = kept / f"{folder.name}-{Path(encoder).name}"
    at = {docid: i for i, docid in enumerate(docids)}
    found = vectors(encoder, [documents[docid].full_text for docid in docids], "document", name)
    asked = vectors(encoder, [topics[one.qid] for one in lists], "query", name)
    for one, query in zip(lists, asked, strict=True):
        one.cosine = (found[[at[docid] for docid in one.docids]] @ query).astype(np.float64)


def vectors(encoder: str, texts: list[str], side: Any, kept: Path) -> NDArray[np.float32]:
    """Of unit length, shape (texts, d), kept block by block."""
    kept.mkdir(parents=True, exist_ok=True)
    blocks, loaded = [], None
    for start in range(0, len(texts), BLOCK):
        path = kept / f"{side}-{start}.npy"
        if not path.is_file():
            loaded = loaded or load_encoder(encoder)
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
                block = encode(loaded, texts[start : start + BLOCK], side)
            with atomic_write(path, "wb") as stream:
                np.save(stream, block / np.linalg.norm(block, axis=1, keepdims=True))
            click.echo(f"{path.name} of {len(texts)}", err=True)
        blocks.append(np.load(path, allow_pickle=False))
    return np.concatenate(blocks)


def measured(lists: list[Scores], qrels: Qrels, weight: float, *, with_weights: bool) -> dict[str, Any]:
    orders: dict[str, Order] = {
        "BM25": lambda one: one.first,
        "model": lambda one: one.model,
        "BM25 and model": lambda one: fuse_scores(one.first, one.model, weight),
        "cosine": lambda one: one.cosine,
        "cosine and model": lambda one: fuse_scores(one.cosine, one.model, weight),
        "cosine and model, reciprocal ranks": lambda one: by_places(one.cosine, one.model),
        "cosine and BM25": lambda one: fuse_scores(one.first, one.cosine, weight),
    }
    per_query = {name: ndcg(lists, qrels, order) for name, order in orders.items()}
    result: dict[str, Any] = {MEASURE: {name: float(found.mean()) for name, found in per_query.items()}}
    ours = "cosine and model"
    result["differences"] = {}
    for other in ("BM25", "model", "cosine", "BM25 and model", "cosine and BM25"):
        test = paired_test(per_query[ours], per_query[other], seed=SEED)
        result["differences"][f"{ours} - {other}"] = {key: getattr(test, key) for key in test.__slots__}
    if with_weights:
        result["by weight"] = {
            str(w): float(ndcg(lists, qrels, lambda one, w=w: fuse_scores(one.cosine, one.model, w)).mean())
            for w in WEIGHTS
        }
    return result


def by_places(*scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reciprocal rank fusion as a score a document."""
    rankings = [[str(i) for i in np.argsort(-values, kind="stable")] for values in scores]
    fused = {hit.docid: hit.score for hit in fuse(rankings)}
    return np.array([fused[str(i)] for i in range(len(scores[0]))])


def ndcg(lists: list[Scores], qrels: Qrels, order: Order) -> NDArray[np.float64]:
    runs = {one.qid: [one.docids[i] for i in np.argsort(-order(one), kind="stable")] for one in lists}
    judged = {qid: qrels[qid] for qid in runs}
    return evaluate_run(judged, in_given_order(runs), [MEASURE]).per_query[MEASURE]


if __name__ == "__main__":
    main()
