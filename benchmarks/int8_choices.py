"""What int8 costs in grades and saves in time: which products get one scale a token and which are computed in blocks.

    python benchmarks/int8_choices.py CHECKPOINT COLLECTION --work FOLDER

COLLECTION has topics.tsv, corpus.jsonl.gz, qrels.txt and runs/bm25.trec. One export's float32 graphs are converted with
more and more of the products that move the logits most in blocks, compared with torch in float32 on PAIRS judged pairs
of the run, and timed in turns on two queries with 50 documents each; torch in bfloat16 likewise. Also how far one scale
a token moves the logits in each kind of product, with and without smoothing. Writes results/int8_choices.json.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from darl_rerank.export import folder as exporting
from darl_rerank.export.parity import compare
from darl_rerank.export.sensitivity import effects, sensitive
from export_parity import judged_sample
from provenance import write_result
from speed.pairs import read_pairs

from darl_rerank import Checkpoint, Reranker
from darl_rerank.engines.onnx_engine import OnnxEngine
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.model.checkpoint import PREFIX_GRAPH
from darl_rerank.model.export_record import ExportRecord
from darl_rerank.offline import prepare, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.qrels import read_qrels
from darl_rerank.trec.runs import read_run
from darl_rerank.trec.topics import read_topics

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The share of the squared movement that is left, see darl_rerank.export.sensitivity.
SHARES = (1.0, 0.5, 0.35, 0.25, 0.1, 0.0)
REPEATS = 3


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("collection", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(model: Path, collection: Path, work: Path, pairs: int, seed: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.load(model)
    run, qrels = read_run(collection / "runs" / "bm25.trec"), read_qrels(collection / "qrels.txt")
    documents = load_documents(collection / "corpus.jsonl.gz", wanted_documents(run, 100))
    job = prepare(run, read_topics(collection / "topics.tsv"), documents, depth=100)
    sample = judged_sample(job, qrels, pairs, seed)
    source = exporting._Traced(checkpoint, work / PREFIX_GRAPH, exporting.OPSET)
    graph, calibration = source.graph, exporting._calibration(checkpoint, sample)
    errors = {"as they are": by_kind(effects(graph, {}, "int8", calibration))}
    factors, moved = source.searched("int8", calibration)
    errors["smoothed"] = by_kind(moved)
    rerankers, chosen = {}, {f"{share:.0%}": sensitive(moved, share) for share in SHARES}
    for name, in_blocks in chosen.items():
        made = converted(checkpoint, source, factors, work / name, in_blocks)
        rerankers[name] = Reranker(made, OnnxEngine(made, device="cpu"))
    rerankers["torch, bfloat16"] = Reranker(checkpoint, TorchEngine(checkpoint, device="cpu", precision="bfloat16"))
    rows = parities(checkpoint, rerankers, sample)
    timed = read_pairs(collection, 100, 50)
    seconds: dict[str, list[float]] = {name: [] for name in rerankers}
    for repeat in range(REPEATS + 1):
        for name, reranker in rerankers.items():
            start = time.perf_counter()
            reranker.score_pairs(timed)
            # The first turn is to warm up.
            seconds[name] += [time.perf_counter() - start] if repeat else []
    rates = {name: len(timed) / statistics.median(found) for name, found in seconds.items()}
    for name, found in rates.items():
        measured = rows.get(name, {})
        click.echo(f"{name:15} {found:6.2f} pairs/s  " + "  ".join(f"{k} {v:.4g}" for k, v in measured.items() if v))
    values = {
        "model": model.name, "fingerprint": checkpoint.fingerprint, "collection": collection.name, "seed": seed,
        "pairs": len(sample), "errors": errors, "chosen": chosen, "parity": rows,
        "seconds": seconds, "pairs_per_second": rates,
    }  # fmt: skip
    click.echo(f"written: {write_result('int8_choices', values)}", err=True)


def by_kind(moved: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """What all layers' products of a kind do to the logits, were they independent, and the one that does most."""
    found = {kind: {name: effect for name, effect in moved.items() if name.endswith(kind)} for kind in KINDS}
    return {
        kind: {"together": float(np.linalg.norm(list(of_kind.values()))), "most": max(of_kind.values())}
        for kind, of_kind in found.items()
    }


def converted(
    checkpoint: Checkpoint, source: exporting._Traced, factors: Mapping[str, Any], folder: Path, in_blocks: list[str]
) -> Checkpoint:
    """An int8 export with some products in blocks, without its gate."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    exporting._write_config(source.graph, checkpoint, folder)
    source.convert("int8", factors, in_blocks, folder)
    checkpoint.replace(export=ExportRecord("int8", exporting.OPSET, tuple(in_blocks))).write_into(folder)
    return Checkpoint.load(folder)


def parities(
    checkpoint: Checkpoint, rerankers: Mapping[str, Reranker], sample: list[GradedPair]
) -> dict[str, dict[str, Any]]:
    texts = [(pair.query, pair.document) for pair in sample]
    torch = Reranker(checkpoint, TorchEngine(checkpoint, device="cpu", precision="float32")).score_pairs(texts)
    return {name: asdict(compare(sample, torch, found.score_pairs(texts))) for name, found in rerankers.items()}


if __name__ == "__main__":
    main()
