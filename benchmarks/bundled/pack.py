"""A training of train.py as a checkpoint: adapter in 8 bits, exits with their rule, calibration, grades, novelty.

    python benchmarks/bundled/pack.py TRAINED START TEXTS CANDIDATES OUTPUT [--ends 22] [--exits 18]

TRAINED has train.json, adapter.safetensors, heads.safetensors and scores.npz (score.py), START is what it was trained
from, TEXTS collect.py's folder, CANDIDATES that of benchmarks/scores.py. With --ends the model ends behind that exit.
Everything is fitted on development collections:

- calibrations and the exits' rule on people's grades of trec-dl-2021; cut points between grades there and on selqa;
- novelty on pairs that people judged in TEXTS and half of trec-dl-2021's queries, its percentiles on the other half;
  the model runs on these here, and OUTPUT.work keeps the features;
- the weight in a fusion on the development collections that CANDIDATES has, without novelty; depth="auto" on
  trec-dl-2021.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from decisions import Pairs
from decisions import fitted as fit_points
from fusion import fusion_lists, lists
from scores import COLLECTIONS, rounded

from darl_rerank import Checkpoint, Reranker
from darl_rerank.model.decisions import Decisions
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.model.head import Head
from darl_rerank.model.novelty import fit_novelty, middle_layer_weights
from darl_rerank.model.reach import fit_reach
from darl_rerank.training.data.features import extract_features
from darl_rerank.training.decisions.decide import recalibrated
from darl_rerank.training.decisions.exits import fit_exit_calibrations, fit_exit_rule
from darl_rerank.training.decisions.fusion import fit_fusion
from darl_rerank.training.model.lowrank import LowRank, mean_adapter, read_adapter, save_as_adapter
from darl_rerank.training.model.temperature import fit_calibration
from darl_rerank.trec.graded_pairs import GradedPair
from darl_rerank.trec.qrels import Qrels

WEB, SENTENCES = "trec-dl-2021", "selqa"
# What people said of a document in TEXTS, not what was made up from titles: that is no traffic (docs/checkpoint.md).
PEOPLE = ("chosen", "partly", "in what was chosen", "passed over")
KNOWN = {"wikipedia": 1600, "products": 500, "films": 300}
SEED = 1


@dataclass(frozen=True, slots=True)
class Query:
    """A query of CANDIDATES with the training's logits, shape (d, exits + 1, K); the rest as `scores.Judged`."""

    row: dict[str, Any]
    logits: NDArray[np.float32]


@click.command(help=__doc__)
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ends", type=int, help="The layer of the exit that the model ends at; its last layer if not given.")
@click.option("--exits", "chosen", default="18", show_default=True, help="Layers where pairs may leave.")
@click.option("--share", default=0.02, show_default=True, help="Of relevant documents, how many may leave.")
@click.option("--rank", default=60, show_default=True, help="Of the adapter.")
@click.option("--feature-layer", default=14, show_default=True, help="Novelty looks at the states behind it.")
def main(
    trained: Path, start: Path, texts: Path, candidates: Path, output: Path, ends: int | None, chosen: str,
    share: float, rank: int, feature_layer: int,
) -> None:  # fmt: skip
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    trained_ones = differences(trained, Checkpoint.load(start), facts["scale"], ends)
    low_rank = mean_adapter([LowRank(trained_ones, rank, 1.0, ())])
    checkpoint = with_heads(Checkpoint.load(start), trained, facts["exits"], chosen, ends)
    checkpoint = checkpoint.replace(feature_layer=feature_layer, trained=True)
    place = {layer: i for i, layer in enumerate(facts["exits"])}
    last = len(place) if ends is None else place[ends]

    web = read(candidates, trained, WEB)
    grades, logits, queries = graded(web)
    assert checkpoint.exits is not None
    exits = fit_exit_calibrations(checkpoint.exits, {n: logits[:, place[n]] for n in checkpoint.exits.layers}, grades)
    exits = fit_exit_rule(exits, {n: logits[:, place[n]] for n in exits.layers}, grades, queries, grade=2, share=share)
    checkpoint = checkpoint.replace(exits=exits)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        size = save_as_adapter(low_rank, folder, base_name=checkpoint.base.name, dtype=torch.float8_e4m3fn)
        checkpoint = checkpoint.save(work / "weights", overwrite=True, adapter=folder)
    click.echo(f"adapter of rank {rank}: {size:,} bytes, {low_rank.kept:.2%} kept; exits: {exits.rule}", err=True)

    final = recalibrated(
        checkpoint,
        fit_calibration(logits[:, last], grades, with_bias=True).calibration,
        logits[:, last],
        grades,
        queries,
    )
    gains = final.scale.gains
    by_name = {name: pairs_of(read(candidates, trained, name), final, last) for name in (WEB, SENTENCES)}
    points = fit_points(by_name[WEB], by_name[SENTENCES], gains)
    scored(candidates, trained, final, last, work / "scores")
    final = final.replace(
        decisions=Decisions(points, {}, fusion_weight(candidates, work / "scores", gains)),
        reach=fit_reach([
            probabilities(final, query, last)[found] @ gains
            for query in web for found in [[int(i) for i, _ in hits] for hits in query.row["stages"].values()]
        ]),
        novelty=novelty(final, known(texts, web), held_out(web), work),
        provenance={"training": facts, "pairs": facts["pairs"]},
    )  # fmt: skip
    saved = final.save(output, overwrite=True)
    click.echo(f"{output}: {saved.fingerprint}; {final.calibration}; grades {points.points}", err=True)


def differences(
    trained: Path, start: Checkpoint, scale: float, ends: int | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What was trained, with START's own adapter, of the layers that are run; as `LowRank.factors`."""
    tensors = load_tensors(trained / "adapter.safetensors")
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, down in tensors.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = tensors[name.replace(".lora_A.", ".lora_B.")].float()
            factors[module] = (down.float(), up * scale)
    if start.adapter_folder is not None:
        for module, (a, b) in read_adapter(start.adapter_folder).factors.items():
            factors[module] = (torch.cat([factors[module][0], a]), torch.cat([factors[module][1], b], dim=1))
    return {m: f for m, f in factors.items() if ends is None or int(m.split(".")[2]) < ends}


def with_heads(start: Checkpoint, trained: Path, layers: Sequence[int], chosen: str, ends: int | None) -> Checkpoint:
    """START with the trained heads; their rows have the final norm's weight in them already."""
    rows = load_file(trained / "heads.safetensors")
    ones = np.ones(start.head.weight.shape[1], np.float32)
    heads = {layer: Head(rows[f"{i}.weight"], rows[f"{i}.bias"], ones) for i, layer in enumerate(layers)}
    wanted = sorted({*map(int, chosen.split(",")), *([] if ends is None else [ends])})
    exits = Exits(tuple(ExitHead(layer, heads[layer]) for layer in wanted))
    last = str(len(layers))
    # A mean ends behind its last exit and has no head after it (mean.py).
    whole = Head(rows[f"{last}.weight"], rows[f"{last}.bias"]) if f"{last}.weight" in rows else start.head
    checkpoint = start.replace(exits=exits, head=whole)
    return checkpoint if ends is None else checkpoint.ending_at(ends)


def read(candidates: Path, trained: Path, name: str) -> list[Query]:
    with np.load(trained / "scores.npz") as stored:
        logits = stored[f"{name}.logits"]
    found, begin = [], 0
    for row in _lines(candidates / f"{name}.candidates.jsonl.gz"):
        found.append(Query(row, logits[begin : begin + len(row["docids"])]))
        begin += len(row["docids"])
    assert begin == len(logits), name
    return found


def graded(queries: Sequence[Query]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.str_]]:
    """Grades (n,), logits (n, exits + 1, K) and query ids (n,) of what people graded."""
    grades = np.concatenate([np.array(query.row["grades"]) for query in queries])
    logits = np.concatenate([query.logits for query in queries])
    names = np.array([query.row["qid"] for query in queries for _ in query.row["docids"]])
    return grades[grades >= 0], logits[grades >= 0], names[grades >= 0]


def probabilities(checkpoint: Checkpoint, query: Query, last: int) -> NDArray[np.float64]:
    return checkpoint.calibration.probabilities(query.logits[:, last])


def pairs_of(queries: Sequence[Query], checkpoint: Checkpoint, last: int) -> Pairs:
    """What BM25 found and people graded, as decisions.py has it."""
    grades, values, names = [], [], []
    for query in queries:
        given = np.array(query.row["grades"])
        found = [int(i) for i, _ in query.row["stages"]["bm25"] if given[int(i)] >= 0]
        grades.append(given[found])
        values.append(probabilities(checkpoint, query, last)[found])
        names += [query.row["qid"]] * len(found)
    return Pairs(np.concatenate(grades), np.concatenate(values), np.array(names))


def scored(candidates: Path, trained: Path, checkpoint: Checkpoint, last: int, folder: Path) -> None:
    """What benchmarks/scores.py would write; novelty 0, as it was not computed."""
    folder.mkdir(exist_ok=True)
    for collection in COLLECTIONS:
        if collection.role == "dev" and (candidates / f"{collection.name}.candidates.jsonl.gz").is_file():
            with (folder / f"{collection.name}.scores.jsonl").open("w", encoding="utf-8") as stream:
                for query in read(candidates, trained, collection.name):
                    line = {key: query.row[key] for key in ("qid", "docids", "grades", "stages")} | {
                        "logits": rounded(query.logits[:, last]),
                        "probabilities": rounded(probabilities(checkpoint, query, last)),
                        "novelty": [0.0] * len(query.logits),
                    }
                    stream.write(json.dumps(line) + "\n")


def fusion_weight(candidates: Path, folder: Path, gains: NDArray[np.float64]) -> Any:
    sets = {}
    for collection in COLLECTIONS:
        if (folder / f"{collection.name}.scores.jsonl").is_file():
            rows = _lines(candidates / f"{collection.name}.candidates.jsonl.gz")
            qrels: Qrels = {
                row["qid"]: {d: g for d, g in zip(row["docids"], row["grades"], strict=True) if g >= 0} for row in rows
            }
            for stage, found in lists(folder, collection.name, gains).items():
                sets[f"{collection.name}, {stage}"] = fusion_lists(found, qrels)
    return fit_fusion(sets, with_novelty=False)


def known(texts: Path, web: Sequence[Query]) -> list[GradedPair]:
    """Pairs that are no news: of TEXTS those that people judged, a draw; and every second query of trec-dl-2021."""
    rng = random.Random(SEED)
    pairs = []
    for name, count in KNOWN.items():
        documents = list(_lines(texts / f"{name}.texts.jsonl.gz"))
        judged = [
            GradedPair(query["query"], documents[int(place)], 0, None, query["qid"])
            for query in _lines(texts / f"{name}.queries.jsonl.gz")
            for place, said in query["said"].items()
            if said in PEOPLE and documents[int(place)].strip()
        ]
        pairs += sorted(rng.sample(judged, min(count, len(judged))), key=lambda pair: pair.qid)
    return pairs + graded_pairs(web[::2], 12)


def held_out(web: Sequence[Query]) -> list[GradedPair]:
    return graded_pairs(web[1::2], 40)


def graded_pairs(queries: Sequence[Query], most: int) -> list[GradedPair]:
    """Up to `most` pairs a query of what people graded."""
    rng = random.Random(SEED)
    pairs = []
    for query in queries:
        row = query.row
        places = [i for i, grade in enumerate(row["grades"]) if grade >= 0]
        for i in rng.sample(places, min(most, len(places))):
            pairs.append(
                GradedPair(row["query"], row["texts"][i], row["grades"][i], None, row["qid"], row["docids"][i])
            )
    return pairs


def novelty(final: Checkpoint, near: list[GradedPair], far: list[GradedPair], work: Path) -> Any:
    final.save(work / "model", overwrite=True)
    reranker = Reranker.from_pretrained(work / "model", engine="torch")
    features = [
        extract_features(reranker, pairs, work / f"{name}-features", description=name).features
        for name, pairs in (("known", near), ("held out", far))
    ]
    return fit_novelty(*features, weights=middle_layer_weights(features[0].shape[1]), k=10, seed=SEED)


def _lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        yield from map(json.loads, stream)


if __name__ == "__main__":
    main()
