"""A packed checkpoint that ends early beside the one that shipped before: order, grades, and what its exits cost.

    python benchmarks/bundled/successor.py PACKED TRAINED CANDIDATES DATA

PACKED is pack.py's checkpoint with a layer that it ends at, TRAINED what it was packed from, with its logits,
CANDIDATES benchmarks/scores.py's folder, which has the scores of what shipped, DATA the collections. Orders BM25's
first 100 (50 where CANDIDATES has no more). Collections that TRAINED has no logits of are left out. Writes
results/successor.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from compare import DEVELOPMENT, TESTS
from numpy.typing import NDArray
from pack import Query, read

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from provenance import write_result
from scores import qrels_file, read_scores

from darl_rerank import Checkpoint, icecat
from darl_rerank.evaluation.grading import confusion, quadratic_weighted_kappa
from darl_rerank.evaluation.reliability import expected_calibration_error
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.model.exits import lowered
from darl_rerank.trec.qrels import Qrels, read_qrels

DEPTH = 100
# Layers of the base model, SmolLM2-135M.
WHOLE = 30
DISCOUNTS = 1 / np.log2(np.arange(2, 12))


@click.command(help=__doc__)
@click.argument("packed", type=click.Path(exists=True, path_type=Path))
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
def main(packed: Path, trained: Path, candidates: Path, data: Path) -> None:
    checkpoint = Checkpoint.load(packed)
    training = json.loads((trained / "train.json").read_text("utf-8"))
    rows = {}
    with np.load(trained / "scores.npz") as stored:
        known = set(stored.files)
    for name in (*DEVELOPMENT, *TESTS):
        if f"{name}.logits" not in known:
            continue
        qrels = icecat.judgements() if name == "icecat" else read_qrels(qrels_file(data / name))
        before = {judged.qid: judged.probabilities @ checkpoint.scale.gains for judged in read_scores(candidates, name)}
        rows[name] = {
            "test": name in TESTS,
            **measured(checkpoint, read(candidates, trained, name), training["exits"], qrels, before),
        }
        shown = ", ".join(f"{key} {value:.3f}" for key, value in rows[name].items() if isinstance(value, float))
        click.echo(f"{name}: {shown}")
    facts = {key: value for key, value in training.items() if key != "log"}
    write_result("successor", {"training": facts, "fingerprint": checkpoint.fingerprint, "collections": rows})


def measured(
    checkpoint: Checkpoint, queries: Sequence[Query], layers: Sequence[int], qrels: Qrels,
    before: dict[str, NDArray[np.float64]],
) -> dict[str, Any]:  # fmt: skip
    exits, ends, gains = checkpoint.exits, checkpoint.layers, checkpoint.scale.gains
    assert exits is not None
    assert ends is not None
    orders: dict[str, list[float]] = {
        "first stage": [],
        "before": [],
        "whole": [],
        "with exits": [],
        "exits' own gain": [],
    }
    grades, probabilities, run, missed, relevant = [], [], [], 0, 0
    for query in queries:
        hits = sorted(query.row["stages"]["bm25"], key=lambda hit: -hit[1])[:DEPTH]
        places = [int(place) for place, _ in hits]
        if not places:
            continue
        judged = qrels.get(query.row["qid"], {})
        given = np.array([judged.get(query.row["docids"][i], -1) for i in places])
        logits = query.logits[places]
        whole = checkpoint.calibration.probabilities(logits[:, layers.index(ends)])
        score, left = whole @ gains, np.zeros(len(places), dtype=bool)
        mixed, own, behind = score.copy(), score.copy(), np.full(len(places), ends)
        for exit_ in exits.heads:
            at = logits[:, layers.index(exit_.layer)]
            now = exits.leaving(exit_.layer, at) & ~left
            own[now] = exit_.probabilities(at)[now] @ gains
            mixed[now], behind[now] = lowered(own[now], float(gains[0])), exit_.layer
            left |= now
        ideal = np.array([max(0, grade) for grade in judged.values()], dtype=float)
        of = np.maximum(given, 0).astype(float)
        for name, by in (
            ("first stage", -np.arange(len(places))), ("before", before[query.row["qid"]][places]), ("whole", score),
            ("with exits", mixed), ("exits' own gain", own),
        ):  # fmt: skip
            orders[name].append(ndcg(of, by, ideal))
        deserves = given >= (2 if max(judged.values(), default=0) > 1 else 1)
        missed, relevant = missed + int((left & deserves).sum()), relevant + int(deserves.sum())
        run.append(behind / WHOLE)
        grades.append(given[given >= 0])
        probabilities.append(whole[given >= 0])
    people, found = np.concatenate(grades), np.concatenate(probabilities)
    values: dict[str, Any] = {name: float(np.mean(each)) for name, each in orders.items()}
    for one, other in (("with exits", "whole"), ("with exits", "before"), ("with exits", "first stage")):
        test = paired_test(np.array(orders[one]), np.array(orders[other]))
        values[f"{one} - {other}"] = [test.difference, test.low, test.high]
    values |= {
        "queries": len(run), "layers run": float(np.concatenate(run).mean()), "relevant": relevant, "missed": missed,
        "left": float((np.concatenate(run) * WHOLE < ends).mean()),
    }  # fmt: skip
    if people.max() > 1:
        given_grades = checkpoint.grade_cuts.grades(found @ gains)
        values["kappa"] = float(quadratic_weighted_kappa(confusion(people, given_grades, len(gains))))
        values["ece"] = float(expected_calibration_error(people, found))
    return values


def ndcg(of: NDArray[np.float64], by: NDArray[Any], ideal: NDArray[np.float64]) -> float:
    """nDCG@10; 0 for a query without a relevant document, as trec_eval has it."""
    best = np.sort(ideal)[::-1][:10]
    total = float((best * DISCOUNTS[: len(best)]).sum())
    top = of[np.argsort(-by, kind="stable")[:10]]
    return float((top * DISCOUNTS[: len(top)]).sum()) / total if total else 0.0


if __name__ == "__main__":
    main()
