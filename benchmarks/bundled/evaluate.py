"""What the checkpoint that ships is worth on collections it never saw.

    python benchmarks/bundled/evaluate.py CHECKPOINT DATA --work FOLDER [--name bundled]

- trec-dl-2019, BM25 top 100: nDCG@10 before and after; on the judged pairs of that run grading and calibration.
  A document that nobody judged counts as irrelevant, and a model that looks elsewhere than the systems whose results
  were judged meets more of those. So also: how many of the first ten are judged, nDCG@10 of the judged documents alone
  (trec_eval -J), and both orders fused by reciprocal rank.
- Icecat (product search), BM25 top 100: the same.
- Novelty of Icecat's judged pairs and of medquad's (medical questions with their answers) against trec-dl-2019's, and
  how many of each a threshold of 95 would warn of.
- Size of the folder, time to load it.

FOLDER keeps the reranked runs: a run that was ended goes on. Writes results/NAME.json.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from darl_rerank.adapters.lucene import lucene_search

from darl_rerank.trec.fusion import fuse_runs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from provenance import write_result

from darl_rerank import Reranker, icecat
from darl_rerank.cli.catalogue import lucene_index
from darl_rerank.evaluation.pairs import evaluate_pairs
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.files import atomic_write
from darl_rerank.model.shipped import checkpoint_folder
from darl_rerank.offline import RerankJob, prepare, rerank_run, wanted_documents
from darl_rerank.trec.corpora import load_documents
from darl_rerank.trec.graded_pairs import GradedPair, pairs_from_qrels
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import Run, in_given_order, read_run
from darl_rerank.trec.topics import read_topics

MEASURE = "nDCG@10"
JUDGED_ONLY = "nDCG(judged_only=True)@10"
SHOWN = 10
WEB, SHOP, MEDICAL = "trec-dl-2019", "icecat", "medquad"
MEDICAL_PAIRS = 300
# A novelty above this is read as a warning: of pairs like the held-out ones it is raised by one in twenty.
WARNS = 95


@click.command(help=__doc__)
@click.argument("model")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--depth", default=100, show_default=True)
@click.option("--name", default="bundled", show_default=True)
@click.option("--precision", help="Of the torch engine; the best that the CPU has in hardware if not given.")
@click.option("--parts", default=f"{WEB},{SHOP},{MEDICAL}", show_default=True)
def main(model: str, data: Path, work: Path, depth: int, name: str, precision: str | None, parts: str) -> None:
    work.mkdir(parents=True, exist_ok=True)
    folder = checkpoint_folder(model)
    reranker = Reranker.from_pretrained(folder, precision=precision)
    checkpoint = reranker.checkpoint
    values: dict[str, Any] = {
        "model": folder.name, "fingerprint": reranker.fingerprint, "depth": depth, "seed": 0,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()},
        "load_seconds": load_seconds(folder, precision), "ranking": {},
    }  # fmt: skip
    judged: list[dict[str, Any]] = []
    for part, (job, run, qrels) in jobs(data, depth, parts.split(",")).items():
        output, details = work / f"{part}.trec", work / f"{part}.jsonl"
        if not details.is_file():
            rerank_run(reranker, job, output, details=details)
        values["ranking"][part] = ranked({qid: run[qid][:depth] for qid in run}, read_run(output), qrels)
        for line in details.read_text("utf-8").splitlines():
            found = json.loads(line)
            grade = qrels.get(found["qid"], {}).get(found["docid"])
            if grade is not None:
                judged.append({**found, "qid": f"{part}/{found['qid']}", "true": grade, "group": part})
    if MEDICAL in parts:
        judged += medical(reranker, data / MEDICAL, work / f"{MEDICAL}.jsonl")
    if judged:
        values |= on_pairs(judged, checkpoint.scale.gains, tuple(g.name for g in checkpoint.scale.grades))
    show(values)
    click.echo(f"written: {write_result(name, values)}", err=True)


def load_seconds(model: Path, precision: str | None) -> float:
    """The median of three loads in a process that has the libraries in memory."""
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        Reranker.from_pretrained(model, precision=precision)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds)


def jobs(data: Path, depth: int, parts: list[str]) -> dict[str, tuple[RerankJob, Run, Qrels]]:
    found = {}
    if WEB in parts:
        folder = data / WEB
        run, qrels = read_run(folder / "runs" / "bm25.trec"), read_qrels(folder / "qrels.txt")
        documents = load_documents(folder / "corpus.jsonl.gz", wanted_documents(run, depth))
        found[WEB] = prepare(run, read_topics(folder / "topics.tsv"), documents, depth=depth), run, qrels
    if SHOP in parts:
        topics = icecat.queries()
        run = lucene_search(lucene_index(), topics, k=depth)
        products = {product.docid: product for product in icecat.read_products()}
        found[SHOP] = prepare(run, topics, products, depth=depth), run, icecat.judgements()
    return found


def ranked(before: Run, after: Run, qrels: Qrels) -> dict[str, Any]:
    fused = in_given_order({qid: [hit.docid for hit in hits] for qid, hits in fuse_runs([before, after]).items()})
    runs = {"before": before, "after": after, "fused": fused}
    found = {name: evaluate_run(qrels, run, [MEASURE, JUDGED_ONLY]).per_query for name, run in runs.items()}

    def compared(name: str, measure: str) -> dict[str, Any]:
        test = paired_test(found[name][measure], found["before"][measure])
        return {
            "before": float(found["before"][measure].mean()), "after": float(found[name][measure].mean()),
            "difference": [test.difference, test.low, test.high], "p": test.p, "wins": test.wins,
            "losses": test.losses,
        }  # fmt: skip

    return {
        "queries": len(found["before"][MEASURE]), **compared("after", MEASURE),
        "per query": found["after"][MEASURE].tolist(),
        "judged": {name: judged_share(run, qrels) for name, run in runs.items()},
        "judged only": compared("after", JUDGED_ONLY), "fused": compared("fused", MEASURE),
    }  # fmt: skip


def judged_share(run: Run, qrels: Qrels) -> float:
    """Which share of the first ten documents, over all queries, somebody judged."""
    first = [entry.docid in qrels.get(qid, {}) for qid, entries in run.items() for entry in entries[:SHOWN]]
    return sum(first) / len(first)


def medical(reranker: Reranker, folder: Path, kept: Path) -> list[dict[str, Any]]:
    """Random pairs of a question with its answer; the grade stands for "chosen" and is not measured."""
    if not kept.is_file():
        every = pairs_from_qrels(
            folder / "topics.tsv", folder / "corpus.jsonl.gz", folder / "qrels.txt", grade_map={"1": 2}, partial=True
        )
        pairs: list[GradedPair] = random.Random(0).sample(every, MEDICAL_PAIRS)
        scores = reranker.score_pairs([(pair.query, pair.document) for pair in pairs])
        with atomic_write(kept) as stream:
            for i, pair in enumerate(pairs):
                novelty = None if scores.novelty is None else float(scores.novelty[i])
                line = {"qid": f"{MEDICAL}/{pair.qid}", "probabilities": scores.probabilities[i].tolist(),
                        "novelty": novelty, "true": 2, "group": MEDICAL}  # fmt: skip
                stream.write(json.dumps(line) + "\n")
    return [json.loads(line) for line in kept.read_text("utf-8").splitlines()]


def on_pairs(judged: list[dict[str, Any]], gains: Any, names: tuple[str, ...]) -> dict[str, Any]:
    novelty = None if judged[0]["novelty"] is None else np.array([pair["novelty"] for pair in judged])
    probabilities = np.array([pair["probabilities"] for pair in judged], dtype=np.float64)
    result = evaluate_pairs(
        np.array([pair["true"] for pair in judged]), probabilities / probabilities.sum(axis=1, keepdims=True), gains,
        np.array([pair["qid"] for pair in judged]), groups=np.array([pair["group"] for pair in judged]),
        novelty_scores=novelty, names=names,
    )  # fmt: skip
    # Its grades are no grades.
    groups = {group: found for group, found in result["groups"].items() if group != MEDICAL}
    found = {"pairs": groups, "novelty": result["novelty"], "novelty reference": result["reference"]}
    if novelty is not None:
        of = np.array([pair["group"] for pair in judged])
        found["warned of"] = {str(group): float((novelty[of == group] > WARNS).mean()) for group in np.unique(of)}
    return found


def show(values: Mapping[str, Any]) -> None:
    for part, found in values["ranking"].items():
        for name, value in ((part, found), ("  judged only", found["judged only"]), ("  fused", found["fused"])):
            difference, low, high = value["difference"]
            click.echo(
                f"{name}: {MEASURE} {value['before']:.4f} before, {value['after']:.4f} after, "
                f"{found['queries']} queries, difference {difference:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
        click.echo("  of the first ten judged: " + ", ".join(f"{k} {v:.3f}" for k, v in found["judged"].items()))
    for part, found in values.get("pairs", {}).items():
        measures = found["measures"]
        shown = ", ".join(
            f"{name} {measures[name]['value']:.3f} [{measures[name]['low']:.3f}, {measures[name]['high']:.3f}]"
            for name in ("qwk", "ece", "mass_above", "nll", "rps", "aurc")
        )
        click.echo(f"{part}, {found['pairs']} judged pairs: {shown}")
    for part, found in values.get("novelty", {}).items():
        auroc, fpr = found["auroc"], found["fpr95"]
        click.echo(
            f"novelty of {part} against {values['novelty reference']}: AUROC {auroc['value']:.3f} "
            f"[{auroc['low']:.3f}, {auroc['high']:.3f}], FPR95 {fpr['value']:.3f}"
        )
    if warned := values.get("warned of"):
        click.echo(f"novelty above {WARNS}: " + ", ".join(f"{share:.0%} of {part}" for part, share in warned.items()))
    click.echo(f"{sum(values['bytes'].values()) / 2**20:.1f} MiB, loaded in {values['load_seconds']:.1f} s")


if __name__ == "__main__":
    main()
