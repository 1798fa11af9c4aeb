"""Which states tell a new kind of pair: mean-pooled or the last token's, and behind which layer?

    python benchmarks/novelty_layers.py CHECKPOINT TEXTS CANDIDATES POOL --work FOLDER

The arguments are those of benchmarks/bundled/fit_novelty.py, and so are the known pairs and those that make the
percentiles, every third of them. Compared are the mean over the query's tokens, over the document's,
over both, the last token's state, and the library's default up to version 0.5: half the mean and the last token. All as
parts of unit length, each behind several layers of the checkpoint.

- "away" collections are to be told from half of trec-dl-2021 (web passages), by AUROC: a forum, and products and films
  as if nothing of their kind had been known.
- "new" are collections at home of which nothing was known either. They should seldom be warned of.

Development collections only. FOLDER keeps the states, so that a run goes on. Writes results/novelty_layers.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from provenance import write_result
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent / "bundled"))
from fit_novelty import DIMENSIONS, KNOWN, LISTS, SEED, WEB, judged, listed, pooled

from darl_rerank import Checkpoint
from darl_rerank.evaluation.detection import auroc
from darl_rerank.model.base_weights import load_body
from darl_rerank.model.novelty import fit_novelty
from darl_rerank.trec.graded_pairs import GradedPair

LAYERS = (4, 8, 10, 12, 14)
QUERY, DOCUMENT, BOTH, LAST = "query", "document", "both", "last token"
FORUM = "semeval-cqa-dev"
KINDS = {"product-questions": "products", "msrd": "films"}
AT_HOME = ("msmarco-sample", "natural-questions", "wiki-qa-mix", "selqa")
WARNS = 95
BATCH = 8
# Parts with their weights.
WAYS: dict[str, dict[str, float]] = {
    "mean of the query": {QUERY: 1}, "mean of the document": {DOCUMENT: 1}, "mean of both": {BOTH: 1},
    "last token": {LAST: 1}, "half the mean, last token": {BOTH: 0.5, LAST: 1},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class States:
    """Of n pairs by part, shape (n, layers, hidden), unit length."""

    parts: dict[str, NDArray[np.float16]]

    def features(self, way: dict[str, float], layer: int) -> NDArray[np.float32]:
        place = LAYERS.index(layer)
        return np.concatenate(
            [self.parts[part][:, place].astype(np.float32) * weight for part, weight in way.items()], axis=1
        )


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("texts", type=click.Path(exists=True, path_type=Path))
@click.argument("candidates", type=click.Path(exists=True, path_type=Path))
@click.argument("pool", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
def main(checkpoint: Path, texts: Path, candidates: Path, pool: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    sets = dict(samples(texts, candidates, pool))
    model = Model(Checkpoint.load(checkpoint))
    states = {}
    for name, pairs in sets.items():
        path = work / f"{name.replace('/', '.')}.npz"
        if not path.is_file():
            np.savez(path, **model.states(pairs, name))
        with np.load(path) as stored:
            states[name] = States({part: stored[part] for part in stored.files})
    rows = [
        {"way": name, "layer": layer, **screened({key: each.features(way, layer) for key, each in states.items()})}
        for name, way in WAYS.items()
        for layer in LAYERS
    ]
    for row in rows:
        away = ", ".join(f"{key} {value['auroc']:.3f}" for key, value in row["away"].items())
        new = ", ".join(f"{key} {value['warned']:.0%}" for key, value in row["new"].items())
        click.echo(f"{row['way']}, layer {row['layer']}: AUROC {away}; of new ones warned {new}")
    sizes = {name: len(pairs) for name, pairs in sets.items()}
    fingerprint = Checkpoint.load(checkpoint).fingerprint
    click.echo(write_result("novelty_layers", {"seed": SEED, "fingerprint": fingerprint, "pairs": sizes, "rows": rows}))


def samples(texts: Path, candidates: Path, pool: Path) -> Iterator[tuple[str, list[GradedPair]]]:
    start, found = 0, judged(texts)
    for kind, count in KNOWN.items():
        yield f"judged/{kind}", found[start : start + count : 3]
        start += count
    yield "pool", pooled(pool)[::3]
    for half in (0, 1):
        yield f"{WEB}/{half}", listed(candidates, WEB, half)[::3]
        for name in LISTS:
            yield f"{name}/{half}", listed(candidates, name, half)[::3]
    yield FORUM, [pair for half in (0, 1) for pair in listed(candidates, FORUM, half)][::3]


class Model:
    """The checkpoint's decoder as transformers runs it, as far as the last of LAYERS."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._encoder = checkpoint.encoder()
        # One layer more: behind the last one transformers' states have gone through the final norm.
        short = checkpoint.replace(layers=max(LAYERS) + 1, exits=None)
        self._body = load_body(short, torch.bfloat16).eval()
        encode = self._encoder.encode("a", ["b"])
        self._separator = len(encode.prefix) - self._encoder.instruction_length - 1
        self._answer = len(encode.suffixes[0]) - 1

    @torch.inference_mode()
    def states(self, pairs: Sequence[GradedPair], name: str) -> dict[str, NDArray[np.float16]]:
        groups = [self._encoder.encode(pair.query, [pair.document], cut_query=True) for pair in pairs]
        sequences = [(len(group.prefix), group.prefix + group.suffixes[0]) for group in groups]
        order = sorted(range(len(pairs)), key=lambda i: len(sequences[i][1]))
        hidden = self._body.config.hidden_size
        found = {
            part: np.zeros((len(pairs), len(LAYERS), hidden), np.float16) for part in (QUERY, DOCUMENT, BOTH, LAST)
        }
        for start in tqdm(range(0, len(order), BATCH), desc=name):
            places = order[start : start + BATCH]
            longest = len(sequences[places[-1]][1])
            ids = torch.tensor([list(sequences[i][1]) + [0] * (longest - len(sequences[i][1])) for i in places])
            mask = torch.tensor([[1] * len(sequences[i][1]) + [0] * (longest - len(sequences[i][1])) for i in places])
            layers = self._body(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            for row, i in enumerate(places):
                own = torch.stack([layers[layer][row].float() for layer in LAYERS])
                for part, value in self._parts(own, *sequences[i]).items():
                    found[part][i] = torch.nn.functional.normalize(value, dim=-1).numpy()
        return found

    def _parts(self, states: torch.Tensor, prefix: int, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        """Of one pair's states, shape (layers, t, hidden)."""
        begin, length = self._encoder.instruction_length, len(tokens)
        query = states[:, begin : prefix - self._separator]
        document = states[:, prefix : max(prefix + 1, length - self._answer)]
        return {
            QUERY: query.mean(1), DOCUMENT: document.mean(1), BOTH: states[:, begin:length].mean(1),
            LAST: states[:, length - 1],
        }  # fmt: skip


def screened(of: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    def novelty(without: str, *asked: str) -> list[NDArray[np.float64]]:
        """Of the sets that are asked for, to a model that knows nothing of a collection, nor of its kind of text."""
        out = {f"judged/{KINDS[without]}"} if without in KINDS else set()
        lists = [name for name in (WEB, *LISTS) if name != without]
        known = [*(f"judged/{kind}" for kind in KNOWN), "pool", *(f"{name}/0" for name in lists)]
        model = fit_novelty(
            np.concatenate([of[name] for name in known if name not in out]),
            np.concatenate([of[f"{name}/1"] for name in lists]),
            dimensions=DIMENSIONS,
            k=10,
            seed=SEED,
        )
        return [model.score(of[name]) for name in asked]

    away, new = {}, {}
    for name, asked in {FORUM: FORUM, **{name: f"{name}/1" for name in KINDS}}.items():
        far, near = novelty(name, asked, f"{WEB}/1")
        outside = np.repeat([True, False], [len(far), len(near)])
        away[name] = {"auroc": float(auroc(outside, np.concatenate([far, near]))), "warned": _warned(far)}
    for name in AT_HOME:
        new[name] = {"warned": _warned(novelty(name, f"{name}/1")[0])}
    inside = (WEB, *AT_HOME)
    scores = novelty("", *(f"{name}/1" for name in inside))
    home = {name: _warned(values) for name, values in zip(inside, scores, strict=True)}
    return {"away": away, "new": new, "home": home}


def _warned(scores: NDArray[np.float64]) -> float:
    return float((scores > WARNS).mean())


if __name__ == "__main__":
    main()
