"""Train a checkpoint in one go: low-rank differences of all linear layers, a head, and heads of early exits.

    python benchmarks/bundled/train.py TEXTS LISTS START BASE OUTPUT --seconds 220

TEXTS is collect.py's folder, LISTS labels.py's, START an untrained checkpoint (`darl-rerank init START`) or one with an
adapter, from which the training then goes on, BASE the folder of its base model. Each step takes whole lists of
documents of some queries, about --tokens tokens; the loss is OCC (docs/training.md), at every exit with weight
--exit-weight. The learning rate rises over a twentieth of --seconds and then falls to zero with them, so that the time
decides how much is seen, on any machine; with --steps it falls with the steps. OUTPUT gets adapter.safetensors (PEFT's
names; the difference from START), heads.safetensors and train.json.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from decoder import LowRankDecoder
from json_lines import json_lines
from safetensors.torch import save_file
from torch import Tensor, nn

from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.training.losses.occ import OccWeights, occ
from darl_rerank.training.model.lowrank import read_adapter

TERMS = OccWeights(rps=1.0, over=0.1, rank=1.0)


@click.command(help=__doc__)
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("lists", type=click.Path(exists=True, path_type=Path))
@click.argument("start", type=click.Path(exists=True, path_type=Path))
@click.argument("base", type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, help="Train so long.")
@click.option("--steps", type=int, help="Train so many steps instead.")
@click.option("--tokens", default=28672, show_default=True, help="Of a step, padding included.")
@click.option("--rank", default=42, show_default=True)
@click.option("--scale", default=2.0, show_default=True, help="What a difference B·A is multiplied by.")
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--exits", default="8,14,20", show_default=True, help="Layers with a head of their own.")
@click.option("--exit-weight", default=0.15, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile the layer: some tens of seconds first.")
@click.option("--seed", default=1, show_default=True)
def main(
    texts: Path, lists: Path, start: Path, base: Path, output: Path, seconds: float | None, steps: int | None,
    tokens: int, rank: int, scale: float, learning_rate: float, exits: str, exit_weight: float, compiled: bool,
    seed: int,
) -> None:  # fmt: skip
    if (seconds is None) == (steps is None):
        raise click.UsageError("give --seconds or --steps")
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = Checkpoint.load(start)
    layers = [int(layer) for layer in exits.split(",")]
    decoder = LowRankDecoder(base, rank, scale, layers)
    if checkpoint.adapter_folder is not None:
        decoder.merge(read_adapter(checkpoint.adapter_folder).factors)
    decoder = decoder.to(device)
    if compiled:
        decoder.compiled()
    heads = nn.ModuleList(started(checkpoint, decoder, place) for place in range(len(layers) + 1)).to(device)
    gains = torch.tensor(checkpoint.scale.gains, dtype=torch.float32, device=device)
    optimiser = torch.optim.AdamW(
        [*decoder.parameters(), *heads.parameters()], lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0,
        fused=device.type == "cuda",
    )  # fmt: skip
    batches = Batches(texts, lists, checkpoint, tokens, seed)
    log: list[dict[str, float]] = []
    seen = passes = 0
    sums = torch.zeros(len(layers) + 1, device=device)
    began = time.monotonic()
    step = 0
    while True:
        part = (time.monotonic() - began) / seconds if seconds else step / (steps or 1)
        if part >= 1:
            break
        ids, last, labels, queries, passes = batches.next()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(part / 0.05, (1 - part) / 0.95)
        states = decoder(ids.to(device, non_blocking=True), last.to(device, non_blocking=True))
        labels, queries = labels.to(device, non_blocking=True), queries.to(device, non_blocking=True)
        losses = [
            occ(head(state), labels, queries=queries, gains=gains, terms=TERMS)
            for head, state in zip(heads, [*states["exits"], states["final"]], strict=True)
        ]
        total = losses[-1] + exit_weight * torch.stack(losses[:-1]).sum()
        total.backward()
        nn.utils.clip_grad_norm_([*decoder.parameters(), *heads.parameters()], 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        sums += torch.stack([loss.detach() for loss in losses])
        step += 1
        seen += len(ids)
        if step % 25 == 0:
            means = (sums / 25).tolist()
            sums.zero_()
            if not all(map(math.isfinite, means)):
                raise click.ClickException(f"the loss is not finite at step {step}: {means}")
            taken = time.monotonic() - began
            log.append({"step": step, "pairs": seen, "seconds": taken, "loss": means[-1]})
            shown = " ".join(f"{value:.3f}" for value in means)
            click.echo(f"{taken:5.0f} s  step {step}  {seen} pairs  {seen / taken:.0f}/s  loss {shown}", err=True)
    facts = {
        "pairs": seen, "passes": passes, "steps": step, "seconds": time.monotonic() - began, "rank": rank,
        "scale": scale, "exits": layers, "learning rate": learning_rate, "exit weight": exit_weight, "tokens": tokens,
        "compiled": compiled, "started from": checkpoint.fingerprint if checkpoint.trained else "the base",
        "seed": seed, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "log": log,
    }  # fmt: skip
    save(output, decoder, heads, facts)


def save(output: Path, decoder: LowRankDecoder, heads: nn.ModuleList, facts: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    save_file(decoder.adapter(), output / "adapter.safetensors")
    rows = {name: value.detach().float().cpu().contiguous() for name, value in heads.state_dict().items()}
    save_file(rows, output / "heads.safetensors")
    (output / "train.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def started(checkpoint: Checkpoint, decoder: LowRankDecoder, place: int) -> nn.Linear:
    """A head that begins with the grade words' rows; an exit's takes the final norm's weight into them."""
    weight = torch.tensor(checkpoint.head.weight)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    rows = weight if place == len(decoder.exits) else weight * decoder.norm.cpu()
    head.weight.data.copy_(rows)
    head.bias.data.copy_(torch.tensor(checkpoint.head.bias))
    return head


class Batches:
    """Whole lists of some queries, of documents of about one length, in an order that is new in every pass."""

    def __init__(self, texts: Path, lists: Path, checkpoint: Checkpoint, tokens: int, seed: int) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._template = [
            tokenizer.encode(part, add_special_tokens=False).ids
            for part in (checkpoint.prompt.instruction, checkpoint.prompt.separator, checkpoint.prompt.answer)
        ]
        tokenizer.encode_special_tokens = True
        self._tokens, self._rng = tokens, random.Random(seed)
        self._lists: list[tuple[list[int], list[list[int]], np.ndarray[Any, Any]]] = []
        found = np.load(lists / "lists.npz")
        for path in sorted(texts.glob("*.texts.jsonl.gz")):
            name = path.name.split(".")[0]
            documents = self._ids(tokenizer, list(json_lines(path)), 160)
            asked = self._ids(
                tokenizer, [q["query"] for q in json_lines(path.with_name(f"{name}.queries.jsonl.gz"))], 48
            )
            query, text, label = (found[f"{name}.{part}"] for part in ("query", "text", "label"))
            ends = [*(np.flatnonzero(np.diff(query)) + 1).tolist(), len(query)]
            begin = 0
            for end in ends:
                self._lists.append((asked[query[begin]], [documents[t] for t in text[begin:end]], label[begin:end]))
                begin = end
        self._passes = 0
        self._order: Iterator[list[int]] = iter(())

    @staticmethod
    def _ids(tokenizer: Any, texts: list[str], most: int) -> list[list[int]]:
        return [e.ids[:most] for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Ids (n, L), last places (n,), labels (n, K), query numbers (n,), and which pass it is, from 1."""
        chosen = next(self._order, None)
        if chosen is None:
            self._passes += 1
            self._order = iter(self._cut())
            chosen = next(self._order)
        instruction, separator, answer = self._template
        rows, labels, numbers = [], [], []
        for number, place in enumerate(chosen):
            query, documents, label = self._lists[place]
            before = [*instruction, *query, *separator]
            rows += [[*before, *document, *answer] for document in documents]
            labels.append(label)
            numbers += [number] * len(documents)
        longest = -(-max(map(len, rows)) // 16) * 16
        ids = np.zeros((len(rows), longest), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
        last = torch.tensor([len(row) - 1 for row in rows])
        return (
            torch.from_numpy(ids),
            last,
            torch.from_numpy(np.concatenate(labels)),
            torch.tensor(numbers),
            self._passes,
        )

    def _cut(self) -> list[list[int]]:
        longest = [
            sum(map(len, self._template)) + len(query) + max(map(len, documents))
            for query, documents, _ in self._lists
        ]  # fmt: skip
        order = sorted(range(len(longest)), key=lambda i: longest[i] * self._rng.uniform(0.93, 1.07))
        batches: list[list[int]] = []
        batch: list[int] = []
        pairs = most = 0
        for place in order:
            count = len(self._lists[place][1])
            wide = -(-max(most, longest[place]) // 16) * 16
            if batch and (pairs + count) * wide > self._tokens:
                batches.append(batch)
                batch, pairs, most = [], 0, 0
            batch.append(place)
            pairs += count
            most = max(most, longest[place])
        self._rng.shuffle(batches)
        return [*batches, batch]


if __name__ == "__main__":
    main()
