"""A training of train.py as a checkpoint: adapter in 8 bits, exits with their rule, calibration, grades.

    python benchmarks/bundled/pack.py TRAINED START CANDIDATES OUTPUT [--ends 22] [--exits 18]

TRAINED has train.json, adapter.safetensors, heads.safetensors and scores.npz (score.py), START is what it was trained
from, CANDIDATES benchmarks/scores.py's folder. With --ends the model ends behind that exit. fit_novelty.py comes after.
Everything is fitted on development collections:

- calibrations and the exits' rule on people's grades of trec-dl-2021; cut points between grades there and on selqa;
- the weight in a fusion on the development collections that CANDIDATES has, without novelty; depth="auto" on
  trec-dl-2021.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from json_lines import json_lines
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from decisions import Pairs
from decisions import fitted as fit_points
from fusion import fusion_lists, lists
from scores import COLLECTIONS, rounded

from darl_rerank import Checkpoint
from darl_rerank.errors import InputError
from darl_rerank.model.decisions import Decisions
from darl_rerank.model.exits import ExitHead, Exits
from darl_rerank.model.head import Head
from darl_rerank.model.reach import Reach, fit_reach
from darl_rerank.training.decisions.decide import recalibrated
from darl_rerank.training.decisions.exits import fit_exit_calibrations, fit_exit_rule
from darl_rerank.training.decisions.fusion import fit_fusion
from darl_rerank.training.model.lowrank import LowRank, mean_adapter, read_adapter, save_as_adapter
from darl_rerank.training.model.temperature import fit_calibration
from darl_rerank.trec.qrels import Qrels

WEB, SENTENCES = "trec-dl-2021", "selqa"


@dataclass(frozen=True, slots=True)
class Query:
    """A query of CANDIDATES with the training's logits, shape (d, exits + 1, K); the rest as `scores.Judged`."""

    row: dict[str, Any]
    logits: NDArray[np.float32]


@click.command(help=__doc__)
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ends", type=int, help="The layer of the exit that the model ends at; its last layer if not given.")
@click.option("--exits", "chosen", default="18", show_default=True, help="Layers where pairs may leave.")
@click.option("--share", default=0.02, show_default=True, help="Of relevant documents, how many may leave.")
@click.option("--rank", default=60, show_default=True, help="Of the adapter.")
def main(
    trained: Path, start: Path, candidates: Path, output: Path, ends: int | None, chosen: str, share: float, rank: int,
) -> None:  # fmt: skip
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    work = output.with_name(f"{output.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    trained_ones = differences(trained, Checkpoint.load(start), facts["scale"], ends)
    low_rank = mean_adapter([LowRank(trained_ones, rank, 1.0, ())])
    checkpoint = with_heads(Checkpoint.load(start), trained, facts["exits"], chosen, ends)
    checkpoint = checkpoint.replace(trained=True)
    place = {layer: i for i, layer in enumerate(facts["exits"])}
    last = len(place) if ends is None else place[ends]

    web = read(candidates, trained, WEB)
    grades, logits, queries = graded(web)
    assert checkpoint.exits is not None
    exits = fit_exit_calibrations(checkpoint.exits, {n: logits[:, place[n]] for n in checkpoint.exits.layers}, grades)
    at_exits = {n: logits[:, place[n]] for n in exits.layers}
    try:
        exits = fit_exit_rule(exits, at_exits, grades, queries, grade=2, share=share)
    except InputError as error:  # too few queries, as in a trial
        click.echo(f"no rule for exits, nothing leaves: {error}", err=True)
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
        reach=reach(web, final, last),
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
    """The queries that have scores."""
    with np.load(trained / "scores.npz") as stored:
        logits, place = stored[f"{name}.logits"], {str(key): i for i, key in enumerate(stored[f"{name}.key"])}
    found = []
    for row in json_lines(candidates / f"{name}.candidates.jsonl.gz"):
        keys = [f"{row['qid']}\t{docid}" for docid in row["docids"]]
        if keys[0] in place:
            found.append(Query(row, logits[[place[key] for key in keys]]))
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


def reach(queries: Sequence[Query], checkpoint: Checkpoint, last: int) -> Reach | None:
    """What depth="auto" needs, of the first stages' lists; None if they are too few or too short, as in a trial."""
    lists = [
        probabilities(checkpoint, query, last)[[int(i) for i, _ in hits]] @ checkpoint.scale.gains
        for query in queries for hits in query.row["stages"].values()
    ]  # fmt: skip
    try:
        return fit_reach(lists)
    except InputError as error:
        click.echo(f"no depth is chosen by itself: {error}", err=True)
        return None


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
            rows = json_lines(candidates / f"{collection.name}.candidates.jsonl.gz")
            qrels: Qrels = {
                row["qid"]: {d: g for d, g in zip(row["docids"], row["grades"], strict=True) if g >= 0} for row in rows
            }
            for stage, found in lists(folder, collection.name, gains).items():
                sets[f"{collection.name}, {stage}"] = fusion_lists(found, qrels)
    return fit_fusion(sets, with_novelty=False)


if __name__ == "__main__":
    main()
