"""Cuts that hold a promise: what is risked and what is kept, on queries like those calibrated on and on others.

    python benchmarks/cuts.py --work FOLDER

FOLDER is scores.py's. On trec-dl-2021 half of the queries, drawn 200 times, fit a cut and the other half measure it.
Then all of its queries fit one, and trec-dl-2019 (the same track, other queries, other judges and other passages) and
Icecat (products) show what a promise is worth elsewhere, and for how many queries a ranking warns. Pairs are those that
BM25 found and people judged. Writes results/cuts.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scores import read_scores

from darl_rerank import Checkpoint
from darl_rerank.errors import InputError
from darl_rerank.evaluation.bootstrap import bootstrap
from darl_rerank.evaluation.grading import weighted_mean
from darl_rerank.model.decisions import Cut, Promise
from darl_rerank.model.shipped import DEFAULT
from darl_rerank.training.decisions.cuts import fit_cut

GRADES = 4
SPLITS = 200
SEED = 0
PROMISES = (
    "recall 0.9 of related", "recall 0.9 of relevant", "recall 0.8 of relevant",
    "precision 0.9 of related", "precision 0.8 of related", "precision 0.7 of relevant", "precision 0.6 of relevant",
)  # fmt: skip
CALIBRATION, OTHERS = "trec-dl-2021", ("trec-dl-2019", "icecat")

# Of each query: grades, probabilities and novelty of its judged pairs.
Query = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def judged(work: Path, name: str) -> list[Query]:
    found = []
    for query in read_scores(work, name):
        places = query.stages["bm25"][0]
        places = places[query.grades[places] >= 0]
        if len(places):
            found.append((query.grades[places], query.probabilities[places], query.novelty[places]))
    return found


def fitted(promise: Promise, queries: list[Query]) -> Cut:
    return fit_cut(
        promise,
        np.concatenate([p for _, p, _ in queries]),
        np.concatenate([g for g, _, _ in queries]),
        np.repeat(np.arange(len(queries)), [len(g) for g, _, _ in queries]),
        novelty=np.concatenate([n for _, _, n in queries]),
    )


def losses(cut: Cut, queries: list[Query]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each query that counts: the risk, the share of its pairs that is kept, whether a ranking warns."""
    risk, kept, warned = [], [], []
    for grades, probabilities, novelty in queries:
        keeps, relevant = cut.keeps(probabilities), grades >= cut.promise.grade
        if cut.promise.kind == "recall" and not relevant.any():
            continue
        wrong = ~keeps[relevant] if cut.promise.kind == "recall" else ~relevant[keeps]
        risk.append(float(wrong.mean()) if len(wrong) else 0.0)
        kept.append(float(keeps.mean()))
        warned.append(float(cut.novelty is not None and novelty.mean() > cut.novelty))
    return np.array(risk), np.array(kept), np.array(warned)


def split_half(promise: Promise, queries: list[Query]) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    risks, shares, refused = [], [], 0
    for _ in range(SPLITS):
        order = rng.permutation(len(queries))
        half = len(queries) // 2
        try:
            cut = fitted(promise, [queries[i] for i in order[:half]])
        except InputError:
            refused += 1
            continue
        risk, kept, _ = losses(cut, [queries[i] for i in order[half:]])
        risks.append(float(risk.mean()))
        shares.append(float(kept.mean()))
    alpha = 1 - promise.level
    if not risks:
        return {"splits": SPLITS, "refused": refused}
    return {
        "splits": SPLITS, "refused": refused, "mean risk": float(np.mean(risks)),
        "risk in splits, 5 % and 95 %": np.percentile(risks, [5, 95]).tolist(),
        "splits above alpha": float(np.mean(np.array(risks) > alpha + 1e-12)), "kept": float(np.mean(shares)),
    }  # fmt: skip


def elsewhere(cut: Cut, queries: list[Query]) -> dict[str, Any]:
    risk, kept, warned = losses(cut, queries)
    interval = bootstrap({"risk": lambda w: weighted_mean(risk, w)}, np.arange(len(risk)), seed=SEED)["risk"]
    return {
        "queries": len(risk), "risk": interval.to_dict(), "kept": float(kept.mean()), "warned": float(warned.mean()),
    }  # fmt: skip


def shown(name: str, found: Mapping[str, Any]) -> str:
    risk = found["risk"]
    return (
        f"{name}: risk {risk['value']:.3f} [{risk['low']:.3f}, {risk['high']:.3f}], kept {found['kept']:.0%}, "
        f"warns {found['warned']:.0%}"
    )


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--name", default="cuts", show_default=True)
def main(work: Path, name: str) -> None:
    scale = Checkpoint.load(DEFAULT).scale
    queries = judged(work, CALIBRATION)
    others = {other: judged(work, other) for other in OTHERS}
    values: dict[str, Any] = {
        "scores": json.loads((work / "scores.json").read_text("utf-8")), "seed": SEED, "calibrated on": CALIBRATION,
        "queries": len(queries), "pairs": sum(len(grades) for grades, _, _ in queries), "cuts": {},
    }  # fmt: skip
    for text in PROMISES:
        promise = Promise.parse(text, scale)
        row: dict[str, Any] = {"alpha": round(1 - promise.level, 12), "halves": split_half(promise, queries)}
        halves = row["halves"]
        line = f"{text}: halves: refused {halves['refused']}"
        if "mean risk" in halves:
            line += (
                f", mean risk {halves['mean risk']:.3f}, above alpha in {halves['splits above alpha']:.0%}, "
                f"kept {halves['kept']:.0%}"
            )
        click.echo(line)
        try:
            cut = fitted(promise, queries)
        except InputError as error:
            row["refused"] = str(error)
        else:
            row |= {"threshold": cut.threshold, "novelty": cut.novelty, "facts": dict(cut.facts)}
            row["elsewhere"] = {other: elsewhere(cut, found) for other, found in others.items()}
            for other, found in row["elsewhere"].items():
                click.echo(f"  threshold {cut.threshold:.3f}  {shown(other, found)}")
        values["cuts"][text] = row
    click.echo(f"written: {write_result(name, values)}", err=True)


if __name__ == "__main__":
    main()
