"""What a training of train.py says of first stages' lists, at each exit.

    python benchmarks/bundled/score.py TRAINED START BASE CANDIDATES

TRAINED is train.py's folder, CANDIDATES that of benchmarks/scores.py. TRAINED gets scores.npz: for each collection the
logits, shape (pairs, exits + 1, K), and the pairs' query and document ids.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from decoder import LowRankDecoder
from numpy.typing import NDArray
from safetensors.torch import load_file

from darl_rerank.model.checkpoint import Checkpoint

# Of a step, padding included.
TOKENS = {"cuda": 49152, "cpu": 2048}


@click.command(help=__doc__)
@click.argument("trained", type=click.Path(exists=True, path_type=Path))
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("base", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
def main(trained: Path, start: Path, base: Path, candidates: Path) -> None:
    facts = json.loads((trained / "train.json").read_text("utf-8"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = LowRankDecoder(base, facts["rank"], facts["scale"], facts["exits"])
    decoder.load_adapter(load_file(trained / "adapter.safetensors"))
    heads = {name: value.to(device) for name, value in load_file(trained / "heads.safetensors").items()}
    encoder, decoder = Checkpoint.load(start).encoder(), decoder.to(device)
    found: dict[str, NDArray[np.float32] | NDArray[np.str_]] = {}
    for path in sorted(candidates.glob("*.candidates.jsonl.gz")):
        ids: list[list[int]] = []
        keys: list[str] = []
        with gzip.open(path, "rt") as stream:
            for row in map(json.loads, stream):
                group = encoder.encode(row["query"], row["texts"])
                ids += [[*group.prefix, *suffix] for suffix in group.suffixes]
                keys += [f"{row['qid']}\t{docid}" for docid in row["docids"]]
        name = path.name.split(".")[0]
        found[f"{name}.logits"] = logits(decoder, heads, ids, device)
        found[f"{name}.key"] = np.array(keys)
        click.echo(f"{name}: {len(keys)} pairs", err=True)
    np.savez_compressed(trained / "scores.npz", **found)


@torch.inference_mode()
def logits(
    decoder: LowRankDecoder, heads: dict[str, torch.Tensor], ids: Sequence[Sequence[int]], device: torch.device
) -> NDArray[np.float32]:
    """Shape (n, exits + 1, K), the last being the whole model's."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    result = np.zeros((len(ids), len(decoder.exits) + 1, len(heads["0.bias"])), np.float32)
    start = 0
    while start < len(order):
        longest = -(-len(ids[order[start]]) // 16) * 16
        part = order[start : start + max(1, TOKENS[device.type] // longest)]
        start += len(part)
        padded = np.zeros((len(part), longest), np.int64)
        for row, place in enumerate(part):
            padded[row, : len(ids[place])] = ids[place]
        last = torch.tensor([len(ids[place]) - 1 for place in part], device=device)
        states = decoder(torch.from_numpy(padded).to(device), last)
        for head, state in enumerate([*states["exits"], states["final"]]):
            result[part, head] = (state @ heads[f"{head}.weight"].T + heads[f"{head}.bias"]).cpu().numpy()
    return result


if __name__ == "__main__":
    main()
