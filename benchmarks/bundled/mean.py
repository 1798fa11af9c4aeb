"""The mean of the weights of a training and of a checkpoint, ended early, with heads that learn from both one's scores.

    python benchmarks/bundled/mean.py TRAINED START CANDIDATES OUTPUT [--beside smollm2-darl] [--ends 22] [--exits 18]

TRAINED is train.py's folder with score.py's scores.npz, START what it began with, CANDIDATES benchmarks/scores.py's
folder with the scores of the checkpoint --beside. Heads behind --exits and --ends learn the mean of what both give a
pair, on the lists of collections whose texts may be published (`TEACHING`), whatever people said of them. So that
these collections can still be measured, the logits of their queries come from heads that saw a fifth less, not these.

OUTPUT gets what pack.py and successor.py read: adapter.safetensors, heads.safetensors, train.json, scores.npz.
States are kept in OUTPUT/states, and what is there is not run again.
"""

from __future__ import annotations

import json
import math
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
from pack import differences
from safetensors.torch import save_file
from torch import Tensor

from darl_rerank import Checkpoint
from darl_rerank.engines.base import GradeOutput, grade_groups
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.files import atomic_write
from darl_rerank.model.calibration import softmax
from darl_rerank.model.exits import EPSILON, ExitHead, Exits
from darl_rerank.model.head import Head
from darl_rerank.progress import progress_bar
from darl_rerank.training.model.lowrank import LowRank, mean_adapter, read_adapter, save_as_adapter

TEACHING = ("natural-questions", "wiki-qa-mix", "selqa", "product-questions", "msrd")
FOLDS = 5
# Weight of the squared rows in a head's loss.
DECAY = 5e-3


@dataclass(frozen=True, slots=True)
class List:
    """A query of a collection and d documents.

    Attributes:
        row: of CANDIDATES.
        target: what both models give, shape (d, K).
        states: of the last token behind each exit and the end, divided by their root mean square, (d, layers, hidden).
    """

    row: dict[str, Any]
    target: NDArray[np.float64]
    states: NDArray[np.float16]


@click.command(help=__doc__)
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--beside", default="smollm2-darl", show_default=True, help="The checkpoint, with an adapter.")
@click.option("--ends", default=22, show_default=True, help="The layer that the model ends behind.")
@click.option("--exits", "chosen", default="18", show_default=True, help="Layers with a head of their own.")
@click.option("--rank", default=60, show_default=True, help="Of the adapter.")
@click.option("--device", help="As `darl-rerank rerank` takes it.")
def main(
    trained: Path, start: Path, candidates: Path, output: Path, beside: str, ends: int, chosen: str, rank: int,
    device: str | None,
) -> None:  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    layers = (*sorted(map(int, chosen.split(","))), ends)
    both = (differences(trained, Checkpoint.load(start), facts["scale"], ends), shipped_differences(beside, ends))
    mean = mean_adapter([LowRank(each, rank, 1.0, ()) for each in both])
    click.echo(f"adapter of rank {rank}: {mean.kept:.2%} kept", err=True)
    engine = StatesEngine(shortened(Checkpoint.load(start), mean, layers, output), layers[:-1], device)
    names = [path.name.split(".")[0] for path in sorted(candidates.glob("*.candidates.jsonl.gz"))]
    found = {name: lists(name, engine, candidates, trained, output / "states") for name in names}
    taught = [each for name in TEACHING if name in found for each in found[name]]
    whole = [fitted(taught, place) for place in range(len(layers))]
    parts = [
        [fitted([each for i, each in enumerate(taught) if i % FOLDS != fold], place) for place in range(len(layers))]
        for fold in range(FOLDS)
    ]
    seen = {id(each): i % FOLDS for i, each in enumerate(taught)}
    scores: dict[str, NDArray[Any]] = {}
    for name, queries in found.items():
        logits = [_logits(each.states, parts[seen[id(each)]] if id(each) in seen else whole) for each in queries]
        scores[f"{name}.logits"] = np.concatenate(logits)
        scores[f"{name}.key"] = np.array([f"{q.row['qid']}\t{docid}" for q in queries for docid in q.row["docids"]])
    save(output, mean, whole, scores, {
        **{key: value for key, value in facts.items() if key != "log"}, "rank": rank, "scale": 1.0,
        "exits": list(layers), "mean with": Checkpoint.load(beside).fingerprint,
        "kept": mean.kept, "heads learned from": {"lists": len(taught), "pairs": sum(len(q.target) for q in taught)},
    })  # fmt: skip


def shipped_differences(model: str, ends: int) -> dict[str, tuple[Tensor, Tensor]]:
    folder = Checkpoint.load(model).adapter_folder
    if folder is None:
        raise click.UsageError(f"expected a checkpoint with an adapter: {model}")
    return {name: pair for name, pair in read_adapter(folder).factors.items() if int(name.split(".")[2]) < ends}


def shortened(start: Checkpoint, mean: LowRank, layers: Sequence[int], output: Path) -> Checkpoint:
    """The mean, in 8 bits as pack.py keeps it, ending behind the last of `layers`, with heads that know nothing."""
    count, hidden = start.head.weight.shape
    empty = Head(np.zeros((count, hidden), np.float32), np.zeros(count, np.float32), np.ones(hidden, np.float32))
    checkpoint = start.replace(exits=Exits(tuple(ExitHead(layer, empty) for layer in layers))).ending_at(layers[-1])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        save_as_adapter(mean, folder, base_name=start.base.name, dtype=torch.float8_e4m3fn)
        return checkpoint.save(output / "mean", overwrite=True, adapter=folder)


class Reading:
    """An exit that lets nothing leave and keeps what it sees; see `darl_rerank.engines.torch_exits.Leaving`."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers, self.states = layers, list[Tensor]()

    def leaving(self, layer: int, states: Tensor) -> NDArray[np.bool_]:
        exact = states.float()
        self.states.append(exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON))
        return np.zeros(len(states), dtype=bool)


class StatesEngine(TorchEngine):
    """Gives states behind some layers and the last one where others give logits, shape (n, layers · hidden)."""

    def __init__(self, checkpoint: Checkpoint, layers: tuple[int, ...], device: str | None) -> None:
        super().__init__(checkpoint, device=device)
        self.encoder, self._layers = checkpoint.encoder(), layers
        self.shape = (len(layers) + 1, checkpoint.head.weight.shape[1])

    @torch.inference_mode()
    def grade(self, batch: Any, prefix: Any, *, features: bool) -> GradeOutput:
        reading = Reading(self._layers)
        states = self.decoder.run(batch.sequences, None if prefix is None else prefix.keys_values, exits=reading)
        return GradeOutput(torch.cat([*reading.states, states.final.float()], dim=1).cpu().numpy(), None)


def lists(name: str, engine: StatesEngine, candidates: Path, trained: Path, folder: Path) -> list[List]:
    with np.load(trained / "scores.npz") as stored:
        at = {str(key): place for place, key in enumerate(stored[f"{name}.key"])}
        logits = stored[f"{name}.logits"][:, -1]
    rows = list(json_lines(candidates / f"{name}.candidates.jsonl.gz"))
    shipped = {row["qid"]: row for row in map(json.loads, (candidates / f"{name}.scores.jsonl").open())}
    (folder / name).mkdir(parents=True, exist_ok=True)
    found = []
    with progress_bar(name, len(rows), unit="query", done=0, progress=True) as bar:
        for number, row in enumerate(rows):
            path = folder / name / f"{number}.npy"
            if not path.is_file():
                group = engine.encoder.encode(row["query"], row["texts"])
                states = grade_groups(engine, [group], grades=math.prod(engine.shape)).logits.astype(np.float16)
                with atomic_write(path, "wb") as stream:
                    np.save(stream, states)
            own = softmax(logits[[at[f"{row['qid']}\t{docid}"] for docid in row["docids"]]].astype(np.float64))
            beside = np.array(shipped[row["qid"]]["probabilities"]).reshape(own.shape)
            states = np.load(path)
            found.append(List(row, (own + beside) / 2, states.reshape(len(own), *engine.shape)))
            bar.update(1)
    return found


def fitted(taught: Sequence[List], place: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows (K, hidden) and biases (K,) of the head at `place` whose cross-entropy with the targets is least."""
    states = torch.from_numpy(np.concatenate([each.states[:, place] for each in taught])).float()
    targets = torch.from_numpy(np.concatenate([each.target for each in taught])).float()
    head = torch.nn.Linear(states.shape[1], targets.shape[1])
    for part in head.parameters():
        torch.nn.init.zeros_(part)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -(targets * head(states).log_softmax(-1)).sum(-1).mean() + DECAY * head.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return head.weight.detach().numpy(), head.bias.detach().numpy()


def _logits(
    states: NDArray[np.float16], heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> NDArray[np.float32]:
    """Shape (d, layers, K)."""
    parts = [states[:, i].astype(np.float32) @ rows.T + bias for i, (rows, bias) in enumerate(heads)]
    return np.stack(parts, axis=1)


def save(
    output: Path, mean: LowRank, heads: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
    scores: dict[str, NDArray[Any]], facts: dict[str, Any],
) -> None:  # fmt: skip
    tensors = {}
    for module, (down, up) in mean.factors.items():
        for letter, factor in (("A", down), ("B", up)):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = factor.contiguous()
    save_file(tensors, output / "adapter.safetensors")
    rows = {}
    for place, (weight, bias) in enumerate(heads):
        rows |= {f"{place}.weight": torch.from_numpy(weight), f"{place}.bias": torch.from_numpy(bias)}
    save_file(rows, output / "heads.safetensors")
    np.savez_compressed(output / "scores.npz", **scores)
    with atomic_write(output / "train.json") as stream:
        stream.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
