"""A recipe with all stages over made-up pairs, small enough to be trained in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path

from click.testing import CliRunner, Result

from darl_rerank.cli import cli

WORDS = ["laptop", "notebook", "garden", "hose", "printer", "toner", "battery", "quick", "fox", "house", "rain"]


def texts(folder: Path, name: str, first: int, queries: int, *, labelled: bool = True) -> None:
    rng = random.Random(name)
    lines = []
    for number in range(first, first + queries):
        query = rng.sample(WORDS, 2)
        for grade in (0, 1, 2, 3):
            document = query[:grade] + rng.sample(WORDS, 3)
            label = grade if labelled else None
            lines.append({"query": f"{' '.join(query)} {number}", "document": " ".join(document), "grade": label})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


RECIPE = """
seed = 3
[model]
checkpoint = "{model}"
[[source]]
name = "home"
pairs = "train.jsonl"
dev_queries = 6
[[source]]
name = "elsewhere"
use = "pool"
pairs = "pool.jsonl"
[[source]]
name = "dev away"
use = "ood_dev"
pairs = "ood_dev.jsonl"
[[source]]
name = "ID test"
use = "test"
pairs = "test.jsonl"
[[source]]
name = "OOD test"
use = "ood_test"
pairs = "ood_test.jsonl"
[probe]
epochs = 3
[select]
budget = 10
strategy = "dasa"
labels = "{labels}"
annotations = "graded.jsonl"
band = [5, 99]
[finetune]
weights = "lora"
rank = 4
batch = 16
micro_batches = 2
replay = 2
seeds = {seeds}
[interpolate]
alphas = [0, 0.5, 1]
"""


def write_pairs(folder: Path) -> Path:
    """The files that the recipe reads; returns the folder."""
    for name, first, queries in (("train", 0, 24), ("ood_dev", 60, 6), ("test", 70, 6), ("ood_test", 80, 6)):
        texts(folder, name, first, queries)
    texts(folder, "pool", 30, 20)
    return folder


def write(folder: Path, model: Path, *, labels: str = "pool", seeds: str = "[0]") -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(model=model, labels=labels, seeds=seeds), "utf-8")
    return path


def train(recipe: Path, output: Path, *words: object) -> Result:
    arguments = ["train", "--config", recipe, "--output", output, "--device", "cpu", *words]
    return CliRunner().invoke(cli, [str(word) for word in arguments])
