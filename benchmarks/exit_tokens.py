"""Could an exit at an early layer read relevance from all tokens' states? With the model's weights as they are.

    python benchmarks/exit_tokens.py WORK [--only 10]

WORK is the folder of benchmarks/exit_token_states.py. Small heads are trained on the states behind a layer to say what
the whole model says of a pair, and measured on queries that they did not see; results/exit_tokens.json gets how many
pairs could leave there. WORK gets a line a head, so that an interrupted run goes on.

A head projects each token of the document once, and then

- "late interaction": compares it with the query's tokens as ColBERT does (Khattab & Zaharia, SIGIR 2020): the cosine
  with the most similar document token, in a learned weighted mean and variance over query tokens;
- "attention pooling": sums values with a learned query's softmax weights, for 8 such queries;
- "all": both, and the last token's state.

"last token" is a head of the same size on that state alone. A network with one hidden layer makes grades of each.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from exit_token_states import LAYERS, MODEL, PAIRS, WEB
from numpy.typing import NDArray
from provenance import write_result
from scores import whole_lines
from torch import Tensor, nn
from torch.nn import functional as F

from darl_rerank import Checkpoint
from darl_rerank.model.exits import exit_logits

CUTOFF, FOLDS, SEED = 10, 3, 0
# What nDCG@10 may lose.
LOSS = 0.005
# Documents of a list in one pass of training, tokens in a batch.
MOST, TOKENS = 16, 4000
EPOCHS, RATE, DECAY, DROP = 10, 2e-3, 0.05, 0.1
PARTS = {
    "last token": ("last",), "late interaction": ("late",), "attention pooling": ("pool",),
    "all": ("late", "pool", "last"),
}  # fmt: skip
# What is trained at a layer: parts of the head, and on what: two thirds of the queries, these without web passages,
# or all other collections.
RUNS = [
    *((10, name, "queries") for name in PARTS),
    *((12, "attention pooling", way) for way in ("queries", "no web")), (8, "attention pooling", "queries"),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class List:
    """A query and d documents, n tokens of theirs (each with the answer cue).

    Attributes:
        name, qid: collection and query.
        query: the query's tokens' states behind a layer, each divided by its root mean square, shape (q, hidden).
        tokens: as `query`, of the documents one after the other, shape (n, hidden).
        starts: where each begins, and n, shape (d + 1,).
        grades: people's, -1 where nobody judged, shape (d,).
        whole: the model's calibrated probabilities of the grades, shape (d, K).
        shipped: those of its exit behind layer 18, shape (d, K).
    """

    name: str
    qid: str
    query: Tensor
    tokens: Tensor
    starts: NDArray[np.int64]
    grades: NDArray[np.int64]
    whole: NDArray[np.float64]
    shipped: NDArray[np.float64]

    def document(self, place: int) -> Tensor:
        return self.tokens[self.starts[place] : self.starts[place + 1]]


# --- heads -----------------------------------------------------------------------------------------------------------


class TokenHead(nn.Module):
    """Grade logits, shape (m, K), from all tokens' states; see the module."""

    def __init__(
        self, parts: Sequence[str], hidden: int, grades: int, size: int = 64, weights: int = 4, queries: int = 8,
        values: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts, self.size, self.queries, self.values = parts, size, queries, values
        late, pool, last = (part in parts for part in ("late", "pool", "last"))
        self.of_query = nn.Linear(hidden, size + weights, bias=False) if late else None
        self.of_token = nn.Linear(hidden, size * late + (queries + values) * pool, bias=False) if late or pool else None
        self.of_last = nn.Linear(hidden, size) if last else None
        count = 2 * weights * late + queries * values * pool + size * last
        self.rows = nn.Sequential(
            nn.Dropout(DROP), nn.Linear(count, 64), nn.GELU(), nn.Dropout(DROP), nn.Linear(64, grades)
        )

    def forward(self, queries: Sequence[Tensor], documents: Sequence[Tensor]) -> Tensor:
        """`queries` and `documents` of m pairs, each shape (tokens, hidden), bfloat16."""
        found = []
        if self.of_token is not None:
            tokens, there = padded(documents, self.of_token.weight)
            if self.of_query is not None:
                found += self._late(queries, tokens[..., : self.size], there)
            if "pool" in self.parts:
                pooled = tokens[..., -(self.queries + self.values) :]
                weights = pooled[..., : self.queries].masked_fill(~there[..., None], -torch.inf).softmax(1)
                found.append((weights.mT @ pooled[..., self.queries :]).flatten(1))
        if self.of_last is not None:
            found.append(F.gelu(self.of_last(torch.stack([each[-1] for each in documents]).float())))
        logits: Tensor = self.rows(torch.cat(found, 1))
        return logits

    def _late(self, queries: Sequence[Tensor], tokens: Tensor, there: Tensor) -> list[Tensor]:
        assert self.of_query is not None
        asked, real = padded(queries, self.of_query.weight)
        cosines = F.normalize(asked[..., : self.size], dim=-1) @ F.normalize(tokens, dim=-1).mT
        best = cosines.masked_fill(~there[:, None], -1).amax(-1)[..., None]
        weights = asked[..., self.size :].masked_fill(~real[..., None], -torch.inf).softmax(1)
        mean = (weights * best).sum(1)
        return [mean, (weights * (best - mean[:, None]).square()).sum(1)]


def padded(parts: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parts' projections, (m, longest, rows of `weight`), float32, and which of them are real, (m, longest)."""
    projected = F.linear(torch.cat(list(parts)), weight.bfloat16()).float()
    lengths = torch.tensor([len(part) for part in parts])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    return projected.new_zeros(*real.shape, len(weight)).masked_scatter(real[..., None], projected), real


Place = tuple[int, int]


def batches(lists: Sequence[List], places: Sequence[Place], rng: random.Random | None = None) -> list[list[Place]]:
    """Documents (list, place) of about equal length together; in random order with `rng`."""
    length = {(i, j): len(lists[i].document(j)) for i, j in places}
    found: list[list[Place]] = [[]]
    for place in sorted(places, key=lambda each: length[each] + (rng.random() * 20 if rng else 0)):
        if found[-1] and (len(found[-1]) + 1) * length[place] > TOKENS:
            found.append([])
        found[-1].append(place)
    if rng:
        rng.shuffle(found)
    return found


def trained(lists: Sequence[List], which: Sequence[int], parts: Sequence[str]) -> TokenHead:
    """A head that says what the whole model says: cross-entropy and the ranked probability score."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    head = TokenHead(parts, lists[0].tokens.shape[1], lists[0].whole.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=DECAY)

    def drawn() -> list[Place]:
        of = {i: range(len(lists[i].grades)) for i in which}
        return [(i, j) for i, places in of.items() for j in rng.sample(places, min(MOST, len(places)))]

    steps = EPOCHS * len(batches(lists, drawn()))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 0.01 + step / (0.1 * steps), max(0.0, 1.01 - step / steps))
    )
    for _ in range(EPOCHS):
        for batch in batches(lists, drawn(), rng):
            target = torch.from_numpy(np.stack([lists[i].whole[j] for i, j in batch])).float()
            logs = F.log_softmax(head([lists[i].query for i, _ in batch], [lists[i].document(j) for i, j in batch]), -1)
            apart = (logs.exp() - target).cumsum(1).square().sum(1)
            loss = (apart - (target * logs).sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.inference_mode()
def said(head: TokenHead, lists: Sequence[List], which: Sequence[int]) -> dict[int, NDArray[np.float64]]:
    """Probabilities of the grades by list, each shape (d, K)."""
    found = {i: np.zeros_like(lists[i].whole) for i in which}
    for batch in batches(lists, [(i, j) for i in which for j in range(len(lists[i].grades))]):
        logits = head([lists[i].query for i, _ in batch], [lists[i].document(j) for i, j in batch])
        for (i, j), row in zip(batch, logits.double().softmax(-1).numpy(), strict=True):
            found[i][j] = row
    return found


# --- what they are worth ---------------------------------------------------------------------------------------------


def ndcg(grades: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """nDCG@10 with exponential gains of one list's documents among themselves; NaN where none is relevant."""
    gains = 2.0 ** np.maximum(grades, 0) - 1
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    order, ideal = np.argsort(-scores, kind="stable")[:CUTOFF], np.sort(gains)[::-1][:CUTOFF]
    best = float(ideal @ discounts[: len(ideal)])
    return float(gains[order] @ discounts[: len(order)]) / best if best else np.nan


class Rule:
    """Lists of one collection under thresholds on an exit's P(grade >= 2): what leaves stands below the rest."""

    def __init__(
        self, lists: Sequence[List], probabilities: Sequence[NDArray[np.float64]], gains: NDArray[Any]
    ) -> None:
        self.lists = lists
        self.low = [each[:, 2:].sum(1) for each in probabilities]
        self.exit, self.whole = [each @ gains for each in probabilities], [each.whole @ gains for each in lists]
        self.own, self.best = self._mean(self.exit), self._mean(self.whole)

    def _mean(self, scores: Sequence[NDArray[np.float64]]) -> float:
        return float(np.nanmean([ndcg(each.grades, score) for each, score in zip(self.lists, scores, strict=True)]))

    def left(self, threshold: float) -> float:
        return float((np.concatenate(self.low) < threshold).mean())

    def change(self, threshold: float) -> float:
        """Of nDCG@10, if pairs below the threshold leave."""
        scores = [
            np.where(low < threshold, early * 1e-3 - 10, late)
            for low, early, late in zip(self.low, self.exit, self.whole, strict=True)
        ]
        return self._mean(scores) - self.best

    def recall(self, threshold: float, grade: int) -> float:
        """Of the documents of `grade` or better, how many stay, in the mean over lists that have some."""
        stays = [low[each.grades >= grade] >= threshold for low, each in zip(self.low, self.lists, strict=True)]
        return float(np.mean([each.mean() for each in stays if len(each)]))


THRESHOLDS = [*np.arange(0.005, 0.2, 0.005).round(3), *np.arange(0.2, 0.7, 0.02).round(3)]


def largest(holds: list[bool]) -> float:
    """The largest threshold up to which a promise holds; 0 if it does at none."""
    return float(THRESHOLDS[holds.index(False) - 1] if holds.index(False) else 0) if False in holds else THRESHOLDS[-1]


def measured(rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Each collection's row; and one threshold for all of them, which costs none more than LOSS."""
    kept = {name: [rule.change(each) >= -LOSS for each in THRESHOLDS] for name, rule in rules.items()}
    common = largest([all(each) for each in zip(*kept.values(), strict=True)])
    recalls = {f"recall {share}": largest([rules[WEB].recall(each, 2) >= share for each in THRESHOLDS])
               for share in (0.98, 0.95)}  # fmt: skip
    rows = {}
    for name, rule in rules.items():
        thresholds = {"own": largest(kept[name]), "common": common, **recalls}
        exact, early = np.concatenate(rule.whole), np.concatenate(rule.exit)
        rows[name] = {
            "queries": len(rule.lists), "pairs": len(exact), "ndcg@10 whole": rule.best, "ndcg@10": rule.own,
            "correlation": float(np.corrcoef(exact, early)[0, 1]),
            **{
                key: {"threshold": at, "left": rule.left(at), "change": rule.change(at)}
                for key, at in thresholds.items()
            },
        }  # fmt: skip
    return rows


@click.command(help=__doc__)
@click.argument("work", type=click.Path(exists=True, path_type=Path))
@click.option("--only", help="Layers, with commas between; nothing is written to results then.")
def main(work: Path, only: str | None) -> None:
    checkpoint = Checkpoint.load(MODEL)
    journal = work / "screen.jsonl"
    done = [json.loads(line) for line in whole_lines(journal)]
    wanted = [run for run in RUNS if not only or str(run[0]) in only.split(",")]
    lists: list[List] = []
    loaded = 0
    for layer, name, way in wanted:
        if any((each["layer"], each["head"], each["trained on"]) == (layer, name, way) for each in done):
            continue
        if layer != loaded:
            lists, loaded = read(work, checkpoint, layer), layer
        start = time.process_time()
        found, size = held_out(lists, PARTS[name], way)
        line = {
            "layer": layer, "head": name, "trained on": way, "parameters": size,
            "processor seconds": time.process_time() - start,
            "rows": measured(rules(lists, found, checkpoint.scale.gains)),
        }  # fmt: skip
        with journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        done.append(line)
        shown = {key: {part: round(row[part], 3) for part in ("ndcg@10", "correlation")}
                 | {part: (round(row[part]["left"], 2), round(row[part]["change"], 3)) for part in ("own", "common")}
                 for key, row in line["rows"].items()}  # fmt: skip
        click.echo(f"{layer} {name}, {way}: {shown}")
    if only:
        return
    lists = lists or read(work, checkpoint, LAYERS[0])
    shipped = measured(rules(lists, {i: each.shipped for i, each in enumerate(lists)}, checkpoint.scale.gains))
    queries = {name: [each.qid for each in lists if each.name == name] for name in PAIRS if name != "known"}
    facts = {
        "model": MODEL, "fingerprint": checkpoint.fingerprint, "seed": SEED,
        "trained on": {
            name: {"queries": len(lengths), "pairs": sum(lengths)}
            for name in PAIRS for lengths in [[len(each.grades) for each in lists if each.name == name]]
        },
    }  # fmt: skip
    write_result("exit_tokens", {**facts, "queries": queries, "exit behind 18": shipped, "heads": done})


def read(work: Path, checkpoint: Checkpoint, layer: int) -> list[List]:
    """What `states` kept; single pairs of a query that a list has are left out."""
    assert checkpoint.exits is not None
    ending, at = checkpoint.exits.heads[0], LAYERS.index(layer)
    separator = len(checkpoint.encoder()._separator)
    found, seen = [], set()
    # Single pairs come last.
    for path in sorted(work.glob("*.npz"), key=lambda path: (path.name.startswith("known"), path.name)):
        with np.load(path) as stored:
            name, (begin, end) = path.name.split(".")[0], stored["query"]
            asked = stored["prefix"][begin : end - separator, at]
            key = str(stored["qid"]) if name == "known" else f"{name}/{stored['qid']}"
            if name == "known" and key in seen:
                continue
            seen.add(key)
            found.append(
                List(
                    name, str(stored["qid"]), torch.from_numpy(asked.copy()).bfloat16(),
                    torch.from_numpy(stored["tokens"][:, at].copy()).bfloat16(),
                    np.concatenate([[0], np.cumsum(stored["length"])]), stored["grades"],
                    checkpoint.calibration.probabilities(stored["logits"]),
                    ending.probabilities(exit_logits(ending.head, checkpoint.link, stored["last18"])),
                )
            )  # fmt: skip
    return found


def held_out(lists: Sequence[List], parts: Sequence[str], way: str) -> tuple[dict[int, NDArray[np.float64]], int]:
    """What heads say of lists that they did not learn from; and a head's number of parameters."""
    order = list(range(len(lists)))
    random.Random(SEED).shuffle(order)
    tested = [i for i in order if lists[i].name != "known"]
    if way == "collections":
        groups = [[i for i in tested if lists[i].name == name] for name in sorted({lists[i].name for i in tested})]
    else:
        groups = [tested[fold::FOLDS] for fold in range(FOLDS)]
    found: dict[int, NDArray[np.float64]] = {}
    size = 0
    for group in groups:
        rest = [i for i in order if i not in set(group) and not (way == "no web" and lists[i].name == WEB)]
        head = trained(lists, rest, parts)
        size = sum(each.numel() for each in head.parameters())
        found |= said(head, lists, group)
    return found, size


def rules(lists: Sequence[List], found: Mapping[int, NDArray[np.float64]], gains: NDArray[Any]) -> dict[str, Rule]:
    by_name: dict[str, list[int]] = {}
    for i in sorted(found):
        if lists[i].name != "known":
            by_name.setdefault(lists[i].name, []).append(i)
    return {name: Rule([lists[i] for i in which], [found[i] for i in which], gains) for name, which in by_name.items()}


if __name__ == "__main__":
    main()
