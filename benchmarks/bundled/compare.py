"""A training of train.py beside the checkpoint that ships, at each exit.

    python benchmarks/bundled/compare.py TRAINED SCORES DATA

TRAINED has train.json and scores.npz (score.py), SCORES is benchmarks/scores.py's folder with the shipped checkpoint's
probabilities, DATA the collections. Orders BM25's first 100 (50 where SCORES has no more). Which training ships is
chosen on the development collections; the tests are only reported. Writes results/one_recipe.json.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import write_result

from darl_rerank import icecat
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.model.calibration import softmax
from darl_rerank.trec.qrels import Qrels, read_qrels

DEVELOPMENT = ("trec-dl-2021", "natural-questions", "wiki-qa-mix", "selqa", "product-questions", "msrd")
TESTS = ("trec-dl-2019", "icecat", "medquad")
DEPTH = 100
GAINS = np.arange(4.0)


@dataclass(frozen=True, slots=True)
class List:
    """One query: gains in BM25's order and of all judged documents; logits (n, exits + 1, K), shipped scores (n,)."""

    gains: NDArray[np.float64]
    judged: Sequence[float]
    logits: NDArray[np.float32]
    shipped: NDArray[np.float64]


@click.command(help=__doc__)
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("scores", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
def main(trained: Path, scores: Path, data: Path) -> None:
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    names = [*(f"layer {layer}" for layer in facts["exits"]), "whole"]
    rows: dict[str, Any] = {}
    for name in (*DEVELOPMENT, *TESTS):
        found = read(name, trained, scores, data)
        shipped = per_query(found, [each.shipped for each in found])
        orders = {n: per_query(found, [score(each.logits[:, i]) for each in found]) for i, n in enumerate(names)}
        both = per_query(found, [score(each.logits[:, -1]) + each.shipped for each in found])
        test = paired_test(orders["whole"], shipped)
        rows[name] = {
            "test": name in TESTS, "queries": len(found),
            "first stage": mean(per_query(found, [-np.arange(len(each.gains)) for each in found])),
            "ships": mean(shipped), **{n: mean(values) for n, values in orders.items()}, "scores added": mean(both),
            "difference": [test.difference, test.low, test.high],
        }  # fmt: skip
        click.echo(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in rows[name].items() if isinstance(v, float)))
    write_result("one_recipe", {"training": facts, "collections": rows})


def read(name: str, trained: Path, scores: Path, data: Path) -> list[List]:
    qrels: Qrels = icecat.judgements() if name == "icecat" else read_qrels(next((data / name).glob("qrels.txt*")))
    with np.load(trained / "scores.npz") as stored:
        logits = stored[f"{name}.logits"]
        at = {tuple(str(key).split("\t")): place for place, key in enumerate(stored[f"{name}.key"])}
    found = []
    with (
        gzip.open(scores / f"{name}.candidates.jsonl.gz", "rt") as first,
        (scores / f"{name}.scores.jsonl").open() as s,
    ):
        judged = {row["qid"]: row for row in map(json.loads, s)}
        for row in map(json.loads, first):
            hits = sorted(row["stages"].get("bm25", ()), key=lambda hit: -hit[1])[:DEPTH]
            docids = [row["docids"][int(place)] for place, _ in hits]
            if not docids:
                continue
            graded, ships = qrels.get(row["qid"], {}), judged[row["qid"]]
            places = {docid: i for i, docid in enumerate(ships["docids"])}
            probabilities = np.array(ships["probabilities"])[[places[docid] for docid in docids]]
            found.append(
                List(
                    np.array([max(0, graded.get(docid, 0)) for docid in docids], dtype=float),
                    [max(0, grade) for grade in graded.values()],
                    logits[[at[row["qid"], docid] for docid in docids]],
                    probabilities @ GAINS,
                )
            )
    return found


def score(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return softmax(logits.astype(np.float64)) @ GAINS


def per_query(lists: Sequence[List], scores: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """nDCG@10 of each query; 0 for one without a relevant document, as trec_eval has it."""
    discount = 1 / np.log2(np.arange(2, 12))
    values = []
    for found, ordering in zip(lists, scores, strict=True):
        best = np.array(sorted(found.judged, reverse=True)[:10])
        ideal = float((best * discount[: len(best)]).sum())
        top = found.gains[np.argsort(-ordering, kind="stable")[:10]]
        values.append(float((top * discount[: len(top)]).sum()) / ideal if ideal else 0.0)
    return np.array(values)


def mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())


if __name__ == "__main__":
    main()
