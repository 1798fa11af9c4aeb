"""First stage, model, reciprocal ranks and fuse="auto": nDCG@10 of each, on collections at home and away.

    python benchmarks/fusion.py DATA --work FOLDER [--write CHECKPOINT]

FOLDER is scores.py's, DATA the folder of collections (for the judgements). The weight is fitted on the development
collections; beside it a constant weight, and how both do on each development collection when fitted on the others.
--write puts the weight into a manifest. Collections that FOLDER lacks are left out. Writes
results/fusion.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import write_result
from scores import COLLECTIONS, qrels_file, read_scores

from darl_rerank import Checkpoint, icecat
from darl_rerank.evaluation.ranking import evaluate_run
from darl_rerank.evaluation.significance import paired_test
from darl_rerank.files import atomic_write
from darl_rerank.model.decisions import FusionWeight
from darl_rerank.model.manifest import MANIFEST
from darl_rerank.model.shipped import DEFAULT, checkpoint_folder
from darl_rerank.training.decisions.fusion import FusionList, fit_fusion
from darl_rerank.trec.fusion import fuse, fuse_scores
from darl_rerank.trec.qrels import Qrels, read_qrels
from darl_rerank.trec.runs import in_given_order

MEASURE = "nDCG@10"
SEED = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What one first stage found for a query: d documents, its scores, the model's, and their mean novelty."""

    qid: str
    docids: list[str]
    first: NDArray[np.float64]
    score: NDArray[np.float64]
    novelty: float


def lists(work: Path, name: str, gains: NDArray[np.float64]) -> dict[str, list[Found]]:
    """By first stage what it found for every query of a collection."""
    found: dict[str, list[Found]] = {}
    for query in read_scores(work, name):
        score = query.probabilities.reshape(-1, len(gains)) @ gains
        for stage, (places, first) in query.stages.items():
            docids = [query.docids[i] for i in places]
            novelty = float(query.novelty[places].mean()) if len(places) else float("nan")
            found.setdefault(stage, []).append(Found(query.qid, docids, first, score[places], novelty))
    return found


def ndcg(grades: NDArray[np.float64], ideal: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    """An order of documents to its nDCG@10, 0 for a query without a relevant document, as trec_eval has it."""
    discounts = 1 / np.log2(np.arange(2, 12))
    best = np.sort(ideal)[::-1][:10]
    total = float(best @ discounts[: len(best)])

    def measure(order: NDArray[np.intp]) -> float:
        top = grades[order[:10]]
        return float(top @ discounts[: len(top)]) / total if total else 0.0

    return measure


def fusion_lists(found: list[Found], qrels: Qrels) -> list[FusionList]:
    result = []
    for one in found:
        judged = qrels.get(one.qid, {})
        grades = np.array([max(0, judged.get(docid, 0)) for docid in one.docids], dtype=np.float64)
        ideal = np.array([max(0, grade) for grade in judged.values()], dtype=np.float64)
        if len(grades) > 1 and ideal.any():
            result.append(FusionList(one.first, one.score, one.novelty, ndcg(grades, ideal)))
    return result


def orders(one: Found, weights: Mapping[str, FusionWeight]) -> dict[str, list[str]]:
    """The docids of a query in every order that is compared."""

    def by(score: NDArray[np.float64]) -> list[str]:
        return [one.docids[i] for i in np.argsort(-score, kind="stable")]

    model = by(one.score)
    fused = {name: by(fuse_scores(one.first, one.score, weight.at(one.novelty))) for name, weight in weights.items()}
    places = by(fuse_scores(None, one.score, weights["auto"].at(one.novelty)))
    reciprocal = [hit.docid for hit in fuse([one.docids, model])]
    return {"first stage": one.docids, "model": model, "reciprocal ranks": reciprocal, **fused,
            "auto, places only": places}  # fmt: skip


def compared(found: list[Found], qrels: Qrels, weights: Mapping[str, FusionWeight]) -> dict[str, Any]:
    runs: dict[str, dict[str, list[str]]] = {}
    for one in found:
        for name, docids in orders(one, weights).items():
            runs.setdefault(name, {})[one.qid] = docids
    judged = {one.qid: qrels[one.qid] for one in found if one.qid in qrels}
    values = {
        name: evaluate_run(judged, {q: entries for q, entries in in_given_order(run).items() if entries}, [MEASURE])
        for name, run in runs.items()
    }
    per_query = {name: scores.per_query[MEASURE] for name, scores in values.items()}
    result: dict[str, Any] = {
        "queries": len(judged), "novelty": float(np.nanmean([one.novelty for one in found])),
        "mean weight": float(np.mean([weights["auto"].at(one.novelty) for one in found])),
        MEASURE: {name: float(scores.mean()) for name, scores in per_query.items()}, "differences": {},
    }  # fmt: skip
    pairs = (
        ("auto", "first stage"), ("auto", "model"), ("auto", "reciprocal ranks"), ("auto", "constant"),
        ("auto, places only", "first stage"), ("model", "first stage"), ("reciprocal ranks", "first stage"),
    )  # fmt: skip
    for ours, other in (pair for pair in pairs if set(pair) <= per_query.keys()):
        test = paired_test(per_query[ours], per_query[other], seed=SEED)
        result["differences"][f"{ours} - {other}"] = {key: getattr(test, key) for key in test.__slots__}
    return result


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--write", "target", help="The checkpoint whose manifest gets the weight.")
@click.option("--name", default="fusion", show_default=True)
def main(data: Path, work: Path, target: str | None, name: str) -> None:
    checkpoint = Checkpoint.load(target or DEFAULT)
    found, qrels = {}, {}
    for collection in COLLECTIONS:
        if not (work / f"{collection.name}.scores.jsonl").is_file():
            continue
        folder = data / (collection.folder or collection.name)
        own = icecat.judgements() if collection.name == "icecat" else read_qrels(qrels_file(folder))
        for stage, some in lists(work, collection.name, checkpoint.scale.gains).items():
            found[collection.name, stage] = some
            qrels[collection.name] = own
    values: dict[str, Any] = {"scores": json.loads((work / "scores.json").read_text("utf-8")), "seed": SEED, "sets": {}}
    development = {c.name for c in COLLECTIONS if c.role == "dev"}
    sets = {key: fusion_lists(some, qrels[key[0]]) for key, some in found.items() if key[0] in development}
    by_name = {f"{c}, {stage}": some for (c, stage), some in sets.items()}
    weights = {"auto": fit_fusion(by_name), "constant": fit_fusion(by_name, with_novelty=False)}
    values["fitted on the others"] = left_out(sets)
    for way, weight in weights.items():
        values[way] = {"weight": weight.weight, "novelty_slope": weight.novelty_slope, "facts": weight.facts}
        click.echo(f"{way}: weight {weight.weight}, slope {weight.novelty_slope}")
    roles = {c.name: c.role for c in COLLECTIONS}
    for (collection, stage), some in found.items():
        row = compared(some, qrels[collection], weights)
        values["sets"][f"{collection}, {stage}"] = {"role": roles[collection], **row}
        shown = "  ".join(f"{way} {value:.3f}" for way, value in row[MEASURE].items())
        change = row["differences"]["auto - first stage"]
        click.echo(
            f"{roles[collection]:4s} {collection:18s} {stage:9s} {row['queries']:4d} queries, novelty "
            f"{row['novelty']:3.0f}: {shown}  auto - first {change['difference']:+.3f} "
            f"[{change['low']:+.3f}, {change['high']:+.3f}]"
        )
    if target is not None:
        path = checkpoint_folder(target) / MANIFEST
        manifest = json.loads(path.read_text("utf-8"))
        manifest.setdefault("decisions", {})["fusion"] = values["auto"]
        with atomic_write(path) as stream:
            stream.write(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        Checkpoint.load(target)
    click.echo(f"written: {write_result(name, values)}", err=True)


def left_out(sets: Mapping[tuple[str, str], list[FusionList]]) -> dict[str, Any]:
    """nDCG@10 on each development collection under the weights that the others give."""
    result: dict[str, Any] = {}
    for collection in dict.fromkeys(name for name, _ in sets):
        others = {str(key): some for key, some in sets.items() if key[0] != collection}
        own = [one for key, some in sets.items() if key[0] == collection for one in some]
        row = {}
        for kind, with_novelty in (("auto", True), ("constant", False)):
            weight = fit_fusion(others, with_novelty=with_novelty)
            row[kind] = {
                "weight": weight.weight, "novelty_slope": weight.novelty_slope,
                MEASURE: float(np.mean([
                    one.measure(np.argsort(-fuse_scores(one.first, one.score, weight.at(one.novelty)), kind="stable"))
                    for one in own
                ])),
            }  # fmt: skip
        result[collection] = row
    return result


if __name__ == "__main__":
    main()
