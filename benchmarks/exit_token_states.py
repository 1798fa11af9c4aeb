"""Token states behind early layers of the checkpoint that ships, for benchmarks/exit_tokens.py.

    python benchmarks/exit_token_states.py CANDIDATES TEXTS WORK [--pairs NAME=N …]

CANDIDATES is the folder of benchmarks/scores.py's `candidates`, TEXTS that of benchmarks/bundled/collect.py. WORK gets
a file a query of BM25's lists of development collections and of single pairs of TEXTS: each token's state behind
`LAYERS`, the last token's behind the exit, and the logits. Six kilobytes a token; goes on where it was interrupted.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from darl_rerank import Checkpoint
from darl_rerank.engines.fused_decoder import FusedDecoder
from darl_rerank.engines.torch_engine import TorchEngine
from darl_rerank.files import atomic_write
from darl_rerank.model.exits import EPSILON

MODEL = "smollm2-darl"
LAYERS = (4, 6, 8, 10, 12)
WEB = "trec-dl-2021"
# Pairs of whole lists, and single pairs ("known") that only train: many queries.
PAIRS = {WEB: 3500, "selqa": 800, "product-questions": 1200, "msrd": 1000, "natural-questions": 500, "known": 1800}
DEPTH = 100


class Recording(FusedDecoder):
    """Keeps the states with which the layers behind `LAYERS` begin: these norms read them."""

    recorded: dict[int, Tensor]

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        for layer in LAYERS:
            if weight is self._layers[layer].attention_norm:
                self.recorded[layer] = states
        return super()._normed(states, weight)


class Exit:
    """Lets nothing leave and keeps what the exit sees; see `darl_rerank.engines.torch_exits.Leaving`."""

    def __init__(self, layer: int) -> None:
        self.layers = (layer,)

    def leaving(self, layer: int, states: Tensor) -> NDArray[np.bool_]:
        self.states = normalised(states)
        return np.zeros(len(states), dtype=bool)


def normalised(states: Tensor) -> Tensor:
    exact = states.float()
    return exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)


@click.command(help=__doc__)
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--pairs", multiple=True, help="NAME=N: another number of a collection's pairs.")
def main(candidates: Path, texts: Path, work: Path, pairs: tuple[str, ...]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint.load(MODEL)
    engine, encoder = TorchEngine(checkpoint.replace(exits=None)), checkpoint.encoder()
    assert type(engine.decoder) is FusedDecoder
    assert checkpoint.exits is not None
    engine.decoder.__class__ = Recording
    decoder, weights = engine.decoder, checkpoint.head
    for name, most in (PAIRS | {name: int(n) for name, n in (each.split("=") for each in pairs)}).items():
        lists = single_pairs(texts) if name == "known" else whole_lists(candidates, name)
        done = 0
        for place, row in enumerate(tqdm(lists, desc=name, mininterval=10)):
            if done >= most:
                break
            done += len(row["texts"])
            output = work / f"{name}.{place:05d}.npz"
            if output.is_file():
                continue
            group = encoder.encode(row["query"], row["texts"])
            tokens, last, final = [], [], []
            with torch.inference_mode():
                decoder.recorded = {}
                before = engine.encode_prefix(group.prefix).keys_values
                query = recorded(decoder, len(group.prefix))
                for some in chunks(group.suffixes, engine.batch_tokens):
                    way = Exit(checkpoint.exits.layers[0])
                    final.append(decoder.run(some, before, exits=way).final.float().numpy())
                    tokens.append(recorded(decoder, sum(map(len, some))))
                    last.append(way.states.half().numpy())
            with atomic_write(output, "wb") as stream:
                np.savez(
                    stream, prefix=query, tokens=np.concatenate(tokens), length=[len(each) for each in group.suffixes],
                    query=[encoder.instruction_length, len(group.prefix)], qid=row["qid"], grades=row["grades"],
                    logits=np.concatenate(final) @ weights.weight.T + weights.bias, last18=np.concatenate(last),
                )  # fmt: skip


def recorded(decoder: Recording, count: int) -> NDArray[np.float16]:
    """The states of `count` tokens, shape (count, layers, hidden)."""
    return torch.stack([normalised(decoder.recorded[layer][:count]) for layer in LAYERS], 1).half().numpy()


def whole_lists(candidates: Path, name: str) -> Iterator[dict[str, Any]]:
    """BM25's first documents of each query."""
    with gzip.open(candidates / f"{name}.candidates.jsonl.gz", "rt", encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            places = [int(place) for place, _ in sorted(row["stages"]["bm25"], key=lambda hit: -hit[1])[:DEPTH]]
            yield {"qid": row["qid"], "query": row["query"]} | {
                key: [row[key][place] for place in places] for key in ("texts", "grades")
            }


def single_pairs(texts: Path) -> list[dict[str, Any]]:
    """Pairs that people judged, as pack.py draws them for novelty."""
    sys.path.insert(0, str(Path(__file__).parent / "bundled"))
    from pack import known

    return [
        {"qid": pair.qid, "query": pair.query, "texts": [pair.document], "grades": [-1]} for pair in known(texts, [])
    ]


def chunks(sequences: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """The sequences in order, so many together that they have at most `tokens`, or one."""
    some: list[tuple[int, ...]] = []
    for sequence in sequences:
        if some and sum(map(len, some)) + len(sequence) > tokens:
            yield some
            some = []
        some.append(sequence)
    yield some


if __name__ == "__main__":
    main()
