"""Gives label.py's pairs a second opinion: that of a checkpoint trained on them, weighed with the encoder's.

On judged passages that neither was trained on, cosine and checkpoint together order better than either: what one misses
the other often sees. So a next round learns from both:

    P(grade | cosine, score, label)  ∝  P(grade | cosine, label) · P(grade | cosine, score) / P(grade | cosine)

The first factor is label.py's soft label; the others are proportional-odds models, that with the checkpoint's score
(the expected gain) fitted on the judged pairs that JUDGED, a recipe, holds out as "ood_dev", which no round trained on.

    python benchmarks/bundled/relabel.py RECIPE CHECKPOINT PAIRS OUTPUT --judged JUDGED

OUTPUT, whose files RECIPE reads, gets a copy of PAIRS in which the web questions that RECIPE draws have new labels. The
others keep theirs: product searches, where that model knows little, and trec-dl-2022, which has a second opinion
already. A collection that is done is not done again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
from label import Encoder, cosines, fit_prior, grade_prior, write
from numpy.typing import NDArray
from tqdm import tqdm

from darl_rerank import Reranker
from darl_rerank.files import atomic_write
from darl_rerank.training.data.sources import load_source
from darl_rerank.training.data.training_set import load_training_set
from darl_rerank.training.recipe.read import read_recipe
from darl_rerank.training.recipe.settings import Recipe

RELABELLED = ("natural-questions", "natural-questions-more", "wiki-qa-mix", "selqa", "msmarco-sample")
CHUNK = 2000


@click.command(help=__doc__)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--judged", type=click.Path(path_type=Path), required=True)
def main(recipe: Path, model: Path, pairs: Path, output: Path, judged: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(pairs.glob("*.jsonl")):
        if not (output / path.name).is_file():
            with atomic_write(output / path.name) as stream, path.open(encoding="utf-8") as unchanged:
                shutil.copyfileobj(unchanged, stream)
    drawn = {
        source.source.pairs.stem: {(pair.qid, pair.docid) for pair in (*source.train, *source.dev)}
        for source in load_training_set(read_recipe(recipe)).sources
        if source.source.pairs is not None and source.source.pairs.stem in RELABELLED
    }
    reranker, encoder = Reranker.from_pretrained(model), Encoder("minilm")
    by_cosine = np.array(json.loads((pairs / "labels.json").read_text("utf-8"))["prior"]["cosine"])
    by_both = fitted(read_recipe(judged), reranker, encoder)
    done: dict[str, Any] = {}
    if (output / "labels.json").is_file():
        done = json.loads((output / "labels.json").read_text("utf-8"))["done"]
    for name in sorted(drawn.keys() - done.keys()):
        rows = [json.loads(line) for line in (pairs / f"{name}.jsonl").read_text("utf-8").splitlines()]
        labels = np.array([row.pop("probabilities") for row in rows])
        mine = np.array([(row["qid"], row["docid"]) in drawn[name] for row in rows])
        assert mine.sum() == len(drawn[name]), f"{name}: {len(drawn[name])} pairs drawn, {mine.sum()} found"
        before = labels[mine]
        of = [(row["query"], row["document"]) for row, taken in zip(rows, mine, strict=True) if taken]
        features = views(reranker, encoder, of, name)
        after = before * grade_prior(by_both, features) / grade_prior(by_cosine, features[:, :1])
        labels[mine] = after / after.sum(axis=1, keepdims=True)
        write(output / f"{name}.jsonl", rows, labels)
        done[name] = {
            "pairs": len(of), "before": before.mean(axis=0).round(3).tolist(),
            "after": labels[mine].mean(axis=0).round(3).tolist(),
        }  # fmt: skip
        click.echo(f"{name}: {done[name]}")
        with atomic_write(output / "labels.json") as stream:
            values = {"checkpoint": reranker.fingerprint, "cosine and checkpoint": by_both.tolist(), "done": done}
            json.dump(values, stream, indent=1)


def fitted(recipe: Recipe, reranker: Reranker, encoder: Encoder) -> NDArray[np.float64]:
    """The proportional-odds model of both views; prints how well each view alone explains the grades, too."""
    held_out = [
        pair
        for source in recipe.sources
        if source.use == "ood_dev"
        for pair in load_source(source, recipe.grades, seed=recipe.seed).train
    ]
    features = views(reranker, encoder, [(pair.query, pair.document) for pair in held_out], "held out")
    grades = np.array([pair.grade for pair in held_out])
    for column in range(2):
        fit_prior(features[:, [column]], grades)
    return fit_prior(features, grades)


def views(reranker: Reranker, encoder: Encoder, pairs: list[tuple[str, str]], name: str) -> NDArray[np.float64]:
    """Cosine and expected gain of each pair, shape (n, 2)."""
    gains = []
    with tqdm(total=len(pairs), unit="pair", desc=name) as bar:
        for start in range(0, len(pairs), CHUNK):
            scores = reranker.score_pairs(pairs[start : start + CHUNK])
            gains.append(scores.probabilities.astype(np.float64) @ reranker.scale.gains)
            bar.update(len(gains[-1]))
    cosine = cosines(encoder, [query for query, _ in pairs], [document for _, document in pairs])
    return np.stack([cosine, np.concatenate(gains)], axis=1)


if __name__ == "__main__":
    main()
